"""Catalogue entries of encoders as checked structures: the facts, and how a network is built."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.spec import check_pinned, checked

INTERPOLATIONS = ("bilinear", "bicubic")
PRECISIONS = ("fp32", "fp16", "bf16")


@dataclass
class ImageSpec:
    """How a patch is brought to a network, in this order.

    Args:
        size: px, edge of the square that the network reads, cut from the centre.
        resize: px, what the shorter edge is resized to before; null: `size`.
        interpolation: "bilinear" or "bicubic", both antialiased, as Pillow's.
        mean, std: of R, G, B in 0 to 1, subtracted and divided by.
    """

    size: int = 224
    resize: int | None = None
    interpolation: str = "bilinear"
    mean: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    std: list[float] = field(default_factory=lambda: [1.0, 1.0, 1.0])


@dataclass
class KeysSpec:
    """From the names of tensors in a published file to those of the network, in this order.

    Args:
        inside: name of the mapping in a pickled file that holds the tensors.
        strip: prefixes to take off, one after the other. drop: prefixes of tensors of other parts.
    """

    inside: str | None = None
    strip: list[str] = field(default_factory=list)
    drop: list[str] = field(default_factory=list)


@dataclass
class EncoderSpec:
    """One encoder of the catalogue: its facts, and the component that builds it (if any).

    Args:
        component: name of the encoder component that computes it; null: only its files are read.
        params: the component's own arguments.
        refused: why its network does not run here, though it is known; excludes `component`.
        dim: width D of a feature vector; null for `pixels`.
        mpp: microns per pixel of its input; patch_size: its input's edge in pixels at that scale.
        image: how a patch is brought to the network. precision: what its publisher or TRIDENT runs
            it in on a GPU: fp32, fp16 or bf16.
        repo: Hub repository of its weights; file: the one in it (null: model.safetensors, else
            pytorch_model.bin); keys: from its tensors' names to the network's.
    """

    summary: str = ""
    licence: str = ""
    source: str = ""
    component: str | None = None
    params: dict[str, Any] = field(default_factory=dict)
    plugin: str | None = None
    refused: str | None = None
    dim: int | None = None
    mpp: float | None = None
    patch_size: int | None = None
    pooling: str | None = None
    preprocessing: str | None = None
    image: ImageSpec | None = None
    precision: str = "fp32"
    repo: str | None = None
    revision: str | None = None
    file: str | None = None
    sha256: str | None = None
    keys: KeysSpec | None = None
    gated: bool = False


def encoder_spec(name: str, record: Any) -> EncoderSpec:
    """Check one encoder of the catalogue. Raises SpecError."""
    whose = f"encoder '{name}'"
    spec = checked(EncoderSpec, whose, record)
    check_pinned(whose, spec)
    if spec.sha256 and not spec.file:
        raise SpecError(f"{whose} states a sha256 and no file that it is of")
    if spec.refused and spec.component:
        raise SpecError(f"{whose} is refused and names a component; leave out one of them")
    if spec.precision not in PRECISIONS:
        raise SpecError(
            f"{whose}: precision is '{spec.precision}', expected {', '.join(PRECISIONS)}"
        )
    if spec.image:
        _check_image(whose, spec.image)
    return spec


def check_runs(name: str, spec: EncoderSpec) -> None:
    """Raise NotFoundError, with the reason and what to do, where no network belongs to an entry."""
    if spec.component:
        return
    why = spec.refused or "it is not part of this wsizoo"
    raise NotFoundError(
        f"The network of encoder '{name}' does not run here: {why}. Features that another tool "
        "made with it can be used. Encoders that run: wsizoo list --encoders"
    )


def _check_image(whose: str, image: ImageSpec) -> None:
    if image.interpolation not in INTERPOLATIONS:
        raise SpecError(
            f"{whose}: image.interpolation is '{image.interpolation}', expected "
            f"{' or '.join(INTERPOLATIONS)}"
        )
    if not 0 < image.size <= (image.resize or image.size):
        raise SpecError(
            f"{whose}: image.size {image.size} does not fit into image.resize {image.resize}"
        )
    if len(image.mean) != 3 or len(image.std) != 3 or min(image.std) <= 0:
        raise SpecError(
            f"{whose}: image.mean {image.mean} and image.std {image.std} are not three numbers "
            "each, of R, G and B, with std above 0"
        )
