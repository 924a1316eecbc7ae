"""STUB of the encoders branch."""

from __future__ import annotations

from itertools import chain

import torch

from wsizoo.errors import DataError


class BatchEncoder:
    def __init__(self, encoder, device=None, precision="auto"):
        self.encoder = encoder
        tensors = chain(encoder.parameters(), encoder.buffers())
        own = next((t.device for t in tensors), torch.device("cpu"))
        self.device = own if device is None else device

    def describe(self):
        return {"device": str(self.device), "precision": "float32"}

    def __call__(self, patches):
        batch = torch.from_numpy(patches).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features = self.encoder(batch.to(self.device)).cpu()
        check_features(features, len(patches), self.encoder)
        return features


def check_features(features, n: int, encoder, first: int = 0) -> None:
    """Raise DataError unless an encoder gave what it declares of n patches.

    That is (n, dim) finite floats, or, where its `dim` is None, (n, 3, H, W) uint8 pixels.
    """
    if encoder.dim is None:
        fits = features.ndim == 4 and features.shape[:2] == (n, 3) and 0 not in features.shape
        fits, expected = fits and features.dtype is torch.uint8, f"({n}, 3, H, W) uint8"
    else:
        fits = features.is_floating_point() and features.shape == (n, encoder.dim)
        expected = f"({n}, {encoder.dim}) float"
    if not fits:
        raise DataError(
            f"encoder '{encoder.name}' gave {tuple(features.shape)} {features.dtype}, expected "
            f"{expected}"
        )
    if encoder.dim is None:
        return
    bad = torch.nonzero(~torch.isfinite(features).all(1))[:, 0]
    if len(bad):
        raise DataError(
            f"encoder '{encoder.name}' gave NaN or infinite features of patch {first + int(bad[0])}"
        )
