"""Conformance checks of encoders alone."""

from __future__ import annotations

import torch

from wsizoo.testing._subject import Subject, check_finite, check_same, evaluate, require


def check_facts_stated(subject: Subject) -> None:
    """Extraction asks the encoder for its scale and size before it reads a slide."""
    encoder = subject.make()
    require(isinstance(encoder.name, str) and encoder.name != "", f"name is {encoder.name!r}")
    if encoder.dim is not None:  # None: of pixels
        require(isinstance(encoder.dim, int) and encoder.dim > 0, f"dim is {encoder.dim!r}")
    require(0.05 <= encoder.mpp <= 20, f"mpp is {encoder.mpp!r}, expected microns per pixel")
    size = encoder.patch_size
    require(isinstance(size, int) and size > 0, f"patch_size is {size!r}, expected pixels")
    known = encoder.precision in ("fp32", "fp16", "bf16")
    require(known, f"precision is {encoder.precision!r}, expected fp32, fp16 or bf16")


def check_features_shape(subject: Subject) -> None:
    """Feature files hold (B, D) float32, D as the catalogue says; of `dim` None, uint8 pixels."""
    encoder = subject.make()
    features = evaluate(subject, encoder)["features"]
    if encoder.dim is None:
        pixels = features.dtype == torch.uint8 and features.ndim == 4
        require(
            pixels and features.shape[:2] == (3, 3),
            f"3 patches give {tuple(features.shape)} {features.dtype}, expected (3, 3, H, W) uint8",
        )
        return
    shape, expected = tuple(features.shape), (3, encoder.dim)
    require(shape == expected, f"3 patches give {shape}, expected {expected} = (B, dim)")
    require(features.dtype == torch.float32, f"features are {features.dtype}, expected float32")
    check_finite({"features": features}, "random patches")


def check_batch_independent(subject: Subject) -> None:
    """A patch's features depend on that patch alone, not on the batch it came in."""
    encoder = subject.make()
    patches = subject.patches(5)
    with torch.no_grad():
        together = encoder(patches)
        alone = torch.cat([encoder(patch[None]) for patch in patches])
    check_same({"features": together}, {"features": alone}, "five patches together, and one by one")


def check_pixels_unchanged(subject: Subject) -> None:
    """The patches belong to the caller, who may write them as a thumbnail."""
    patches = subject.patches()
    before = patches.clone()
    with torch.no_grad():
        subject.make()(patches)
    require(torch.equal(patches, before), "it writes into the patches; work on a copy")


def check_memory_layout_free(subject: Subject) -> None:
    """Images come as (H, W, 3) and are transposed, not copied: strides mean nothing."""
    encoder, patches = subject.make(), subject.patches()
    transposed = patches.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    with torch.no_grad():
        plain, other = encoder(patches), encoder(transposed)
    check_same({"features": other}, {"features": plain}, "patches in channels-last memory")


def check_blank_patches_finite(subject: Subject) -> None:
    """Background is white, scanner gaps are black: both have features."""
    encoder = subject.make()
    for level in (0, 255):
        patches = torch.full_like(subject.patches(2), level)
        with torch.no_grad():
            check_finite({"features": encoder(patches)}, f"patches of {level} everywhere")


def check_reads_every_channel(subject: Subject) -> None:
    """Colour is the stain: red, green and blue are told apart."""
    encoder, patches = subject.make(), subject.patches()
    with torch.no_grad():
        plain, swapped = encoder(patches), encoder(patches.flip(1))
    require(not torch.allclose(plain, swapped), "red and blue swapped give the same features")


def check_fingerprint_complete(subject: Subject) -> None:
    """Feature files are compared by their fingerprints; what is not stated is never compared."""
    encoder = subject.make()
    stated = encoder.fingerprint().stated()
    for name in ("encoder", "preprocessing", "mpp", "patch_size"):
        require(name in stated, f"the fingerprint states no {name}")
    require(stated["encoder"] == encoder.name, f"the fingerprint names {stated['encoder']!r}")
    require(
        "revision" in stated or "weights" in stated or encoder.dim is None,
        "the fingerprint states neither revision nor weights: which numbers made the features?",
    )
    asked = encoder.fingerprint(mpp=1.5, patch_size=96)
    require(
        (asked.mpp, asked.patch_size) == (1.5, 96), "the fingerprint ignores the scale asked for"
    )


ENCODER = (
    check_facts_stated,
    check_features_shape,
    check_batch_independent,
    check_pixels_unchanged,
    check_memory_layout_free,
    check_blank_patches_finite,
    check_reads_every_channel,
    check_fingerprint_complete,
)
