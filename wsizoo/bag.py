"""Bag: one slide as a set of patches. BagBatch: several slides packed end to end."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import BagError
from wsizoo.fingerprint import Fingerprint

CONCAT_GAP = 1024  # empty cells between the slides of a patient; beyond any local receptive field


@dataclass(frozen=True, eq=False)
class Bag:
    """One slide.

    Args:
        features: (N, D) float, or (N, 3, H, W) uint8 for models that read pixels.
        coords: (N, 2) int64, level-0 px, (x, y), top-left of each patch; or None.
        spacing: level-0 px between neighbouring patches (float), or None.
        footprint: edge of a patch in level-0 px (float), default `spacing`.
        mpp: microns per level-0 px, or None.
        encoder: what made the features (a bare name counts as declared by the user), or None for a
            bag made by hand.
        slide_id: name of the slide, used in messages and outputs.
        target: training only: any of `label`; `time`, `event`; `instances` (N,); `value`.
        parts: (M+1,) int64, where the slides of a patient begin and end, after `concat`.

    Raises:
        BagError: shapes, dtypes or lengths that do not fit together.
    """

    features: Tensor
    coords: Tensor | None = None
    spacing: float | None = None
    footprint: float | None = None
    mpp: float | None = None
    encoder: Fingerprint | None = None
    slide_id: str = "bag"
    target: Mapping[str, Any] | None = None
    parts: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_features()
        self._check_coords()
        for name in ("spacing", "footprint", "mpp"):
            value = getattr(self, name)
            if value is not None and not 0 < float(value) < float("inf"):
                raise BagError(f"{self.slide_id}: {name} is {value}, expected a positive number")
        if self.footprint is None:
            object.__setattr__(self, "footprint", self.spacing)
        if isinstance(self.encoder, str):
            object.__setattr__(self, "encoder", Fingerprint(encoder=self.encoder, declared=True))
        ends = [0, len(self)] if self.parts is None else self.parts.tolist()
        if ends != sorted(ends) or ends[:1] + ends[-1:] != [0, len(self)]:
            raise BagError(
                f"{self.slide_id}: parts are {ends}, expected 0 to {len(self)} ascending"
            )

    def _check_features(self) -> None:
        f = self.features
        if not isinstance(f, Tensor):
            raise BagError(
                f"{self.slide_id}: features are a {type(f).__name__}, expected a torch tensor "
                "(torch.as_tensor(features))"
            )
        vectors = f.ndim == 2 and f.is_floating_point()
        pixels = f.ndim == 4 and f.dtype == torch.uint8 and f.shape[1] == 3
        if not (vectors or pixels):
            raise BagError(
                f"{self.slide_id}: features are {tuple(f.shape)} {f.dtype}, expected (N, D) float "
                "or (N, 3, H, W) uint8"
            )

    def _check_coords(self) -> None:
        c = self.coords
        if c is None:
            return
        if not isinstance(c, Tensor) or c.dtype != torch.int64 or c.shape != (len(self), 2):
            got = f"{tuple(c.shape)} {c.dtype}" if isinstance(c, Tensor) else type(c).__name__
            raise BagError(
                f"{self.slide_id}: coords are {got}, expected ({len(self)}, 2) int64 level-0 px "
                "(x, y), one row a patch (coords.round().long())"
            )

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.features.shape))
        return f"Bag('{self.slide_id}', {shape}, spacing={self.spacing}, encoder={self.encoder})"

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def dim(self) -> int:
        """Width D of the features; for pixels the number of channels."""
        return int(self.features.shape[1])

    @property
    def device(self) -> torch.device:
        return self.features.device

    def replace(self, **changes: Any) -> Bag:
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Bag:
        """Move features and coords; `dtype` applies to float features only (pixels stay uint8)."""
        features = self.features.to(device, dtype if self.features.is_floating_point() else None)
        coords = None if self.coords is None else self.coords.to(device)
        if features is self.features and coords is self.coords:
            return self
        return self.replace(features=features, coords=coords)

    def subset(self, index: Tensor) -> Bag:
        """The patches at `index` (K,) int64, in that order; per-patch targets go along."""
        target = self.target
        if target is not None and "instances" in target:
            instances = torch.as_tensor(target["instances"])
            target = {**target, "instances": instances[index.to(instances.device)]}
        coords = None if self.coords is None else self.coords[index]
        return self.replace(features=self.features[index], coords=coords, target=target, parts=None)

    def grid(self) -> Tensor:
        """Integer cells (N, 2): round(coords / spacing) from level-0 (0, 0), the only definition.

        Computed once for a bag and shared: do not write into it.

        Raises:
            BagError: without coords or spacing.
        """
        return self._cells

    @functools.cached_property
    def _cells(self) -> Tensor:
        if self.coords is None or self.spacing is None:
            missing = "coords" if self.coords is None else "spacing"
            raise BagError(
                f"{self.slide_id} has no {missing}, so no grid. Make it with "
                "Bag(features, coords=xy, spacing=level0_px_between_patches)"
            )
        with torch.inference_mode(False):  # a later training run may meet the same bag
            return torch.round(self.coords.double() / self.spacing).long()  # (N, 2)

    def require_unique_cells(self) -> Tensor:
        """`grid()`, checked: no two patches share a cell.

        Raises:
            BagError: with the number of collisions and the first pair.
        """
        cells = self.grid()
        if len(cells) < 2:
            return cells
        low = cells.amin(0)
        width = cells[:, 1].max() - low[1] + 1
        key = (cells[:, 0] - low[0]) * width + cells[:, 1] - low[1]  # (N,)
        ordered, order = torch.sort(key, stable=True)
        same = torch.nonzero(ordered[1:] == ordered[:-1])[:, 0]
        if len(same):
            first, second = int(order[same[0]]), int(order[same[0] + 1])
            raise BagError(
                f"{self.slide_id}: {len(same)} patches share a grid cell with another, first "
                f"patches {first} and {second} in cell {tuple(cells[first].tolist())} (spacing "
                f"{self.spacing}); wsizoo convert FILE FOLDER --collisions nearest parts them"
            )
        return cells

    @staticmethod
    def concat(bags: Sequence[Bag], gap: int = CONCAT_GAP) -> Bag:
        """Join the slides of a patient into one bag.

        With coords, each slide's grid is moved beside the one before, `gap` empty cells apart (more
        than any receptive field), and multiplied by the first spacing. `parts` splits back.

        Raises:
            BagError: no bags; widths, encoders, targets or patch sizes in microns that differ; some
                with coords and some without.
        """
        from wsizoo.patient import join

        return join(bags, gap)


def check_alike(bags: Sequence[Bag], what: str) -> None:
    """Raise unless there are bags, of features of one shape."""
    if not bags:
        raise BagError(f"{what} needs at least one bag")
    shapes = [tuple(bag.features.shape[1:]) for bag in bags]
    for bag, shape in zip(bags, shapes, strict=True):
        if shape != shapes[0]:
            raise BagError(
                f"{bags[0].slide_id} and {bag.slide_id} have features of different shape, "
                f"{shapes[0]} and {shape}"
            )


@dataclass(frozen=True, eq=False)
class BagBatch:
    """Several slides packed end to end.

    Args:
        features: (N_total, ...) of all slides.
        offsets: (B+1,) int64; slide b owns rows offsets[b]:offsets[b+1].
        coords: (N_total, 2) int64, each slide in its own frame, or None.
        bags: the slides themselves; their tensors are views of the packed ones.
    """

    features: Tensor
    offsets: Tensor
    coords: Tensor | None
    bags: tuple[Bag, ...]

    @staticmethod
    def pack(bags: Sequence[Bag]) -> BagBatch:
        """Pack slides of one feature width. Raises BagError when they do not fit together."""
        check_alike(bags, "BagBatch.pack")
        features = torch.cat([bag.features for bag in bags])
        found = [bag.coords for bag in bags if bag.coords is not None]
        return _packed(features, torch.cat(found) if len(found) == len(bags) else None, bags)

    def __len__(self) -> int:
        return len(self.bags)

    def __iter__(self) -> Iterator[Bag]:
        return iter(self.bags)

    def __getitem__(self, index: int) -> Bag:
        return self.bags[index]

    @property
    def lengths(self) -> Tensor:
        """(B,) int64, patches per slide."""
        return self.offsets.diff()

    @property
    def segments(self) -> Tensor:
        """(N_total,) int64, the slide that each row belongs to."""
        return segment_ids(self.offsets, len(self.features))

    def cells(self) -> Tensor:
        """(N_total, 2) int64, `grid()` of each slide in its own frame. Raises as `Bag.grid`."""
        return torch.cat([bag.grid() for bag in self.bags])

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> BagBatch:
        """Move tensors; `dtype` applies to float features only."""
        features = self.features.to(device, dtype if self.features.is_floating_point() else None)
        if features is self.features:
            return self
        return _packed(features, None if self.coords is None else self.coords.to(device), self.bags)


def _packed(features: Tensor, coords: Tensor | None, bags: Sequence[Bag]) -> BagBatch:
    """A batch of these tensors, and each bag as views of them."""
    ends = [0, *itertools.accumulate(map(len, bags))]
    views = []
    for bag, (a, b) in zip(bags, itertools.pairwise(ends), strict=True):
        own = bag.coords if coords is None else coords[a:b]
        own = None if own is None else own.to(features.device)
        views.append(bag.replace(features=features[a:b], coords=own))
    return BagBatch(features, torch.tensor(ends, device=features.device), coords, tuple(views))


def segment_ids(offsets: Tensor, n: int | None = None) -> Tensor:
    """(N,) int64, the slide each row belongs to.

    Args:
        offsets: (B+1,) int64. n: N, where it is known: spares a wait for the GPU.
    """
    ids = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(ids, offsets.diff(), output_size=n)
