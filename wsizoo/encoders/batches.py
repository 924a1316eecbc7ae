"""Patches to checked features, a batch at a time, on any device and in any precision."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from itertools import chain
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.errors import BackendError, DataError
from wsizoo.interfaces import Encoder

Precision = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}

log = logging.getLogger(__name__)


class BatchEncoder:
    """Calls an encoder on arrays of patches.

    Args:
        device: where the encoder is moved and batches go; None: where its tensors are.
        precision: "auto" is the encoder's own on a GPU and fp32 on a CPU; "fp16" and "bf16" are
            torch's autocast, whose features deviate from those of fp32 by about 1e-3.

    Attributes:
        precision: the one that is used, never "auto": belongs to what made the features.
        most: patches that fit into the device's memory at once, once it has overflowed; else None.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device | str | None = None,
        precision: Precision = "auto",
    ) -> None:
        if precision not in ("auto", "fp32", *DTYPES):
            raise DataError(
                f"precision is '{precision}', expected auto, fp32, {' or '.join(DTYPES)}"
            )
        self.encoder = encoder.eval()
        if device is not None:
            self.encoder.to(device)
        tensors = chain(encoder.parameters(), encoder.buffers())
        own = next((tensor.device for tensor in tensors), torch.device("cpu"))
        self.device = own if device is None else torch.device(device)
        self.precision: str = precision
        if precision == "auto":
            self.precision = encoder.precision if self.device.type == "cuda" else "fp32"
        self.most: int | None = None

    def __call__(
        self, patches: NDArray[np.uint8], index: Sequence[int] | NDArray[np.int64] | None = None
    ) -> Tensor:
        """Patches (n, H, W, 3) uint8 -> features (n, D) float32 or pixels (n, 3, H, W), on the CPU.

        A batch that overflows the device's memory is done in halves, and so are later ones. The
        same batch gives the same features, but for that.

        Args:
            index: what the patches are called in messages; None: 0 to n - 1.

        Raises:
            DataError: the encoder did not give what it declares, or NaN. BackendError: one patch
            alone overflows the memory.
        """
        if patches.dtype != np.uint8 or patches.ndim != 4 or patches.shape[3] != 3:
            raise DataError(
                f"patches are {patches.shape} {patches.dtype}, expected (n, H, W, 3) uint8, RGB"
            )
        writable = np.require(patches, requirements=("C", "W"))
        batch = torch.from_numpy(writable).permute(0, 3, 1, 2)  # (n, 3, H, W)
        parts: list[Tensor] = []
        done = 0
        while done < len(batch):
            part = batch[done : done + (self.most or len(batch))]
            try:
                parts.append(self._encode(part))
                done += len(part)
            except torch.cuda.OutOfMemoryError as error:
                self._halve(len(part), error)
        features = torch.cat(parts) if parts else self._encode(batch)
        check_features(features, len(patches), self.encoder, index, self.precision)
        return features

    def _encode(self, batch: Tensor) -> Tensor:
        if not len(batch) and self.encoder.dim is not None:
            return torch.empty(0, self.encoder.dim)
        with torch.inference_mode(), self._autocast():
            features: Tensor = self.encoder(batch.to(self.device))
        return features.float().cpu() if features.is_floating_point() else features.cpu()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    def _halve(self, n: int, error: Exception) -> None:
        if n < 2:
            raise BackendError(
                f"encoder '{self.encoder.name}' overflows the memory of {self.device} with one "
                "patch. Free it of other processes, use --precision fp16, or --device cpu"
            ) from error
        if self.most is None:
            log.warning("%s overflows with %d patches at once; fewer from now on", self.device, n)
        self.most = n // 2
        torch.cuda.empty_cache()


def check_features(
    features: Tensor,
    n: int,
    encoder: Encoder,
    index: Sequence[int] | NDArray[np.int64] | None = None,
    precision: str = "fp32",
) -> None:
    """Raise DataError unless an encoder gave what it declares of n patches.

    That is (n, dim) finite floats, or, where its `dim` is None, (n, 3, H, W) uint8 pixels.
    """
    if encoder.dim is None:
        fits = features.ndim == 4 and features.shape[:2] == (n, 3) and 0 not in features.shape[2:]
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
        patch = int(bad[0]) if index is None else int(index[int(bad[0])])
        hint = "" if precision == "fp32" else f" in {precision}; try --precision fp32"
        raise DataError(
            f"encoder '{encoder.name}' gave NaN or infinite features of patch {patch}{hint}"
        )
