"""Feature files of any tool as bags: level-0 px, one grid, a fingerprint."""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.contents import IN_FRAME, LEVEL0, Contents, Format
from wsizoo.formats.detect import contents_of
from wsizoo.formats.encoders import declared
from wsizoo.formats.regrid import EXACT, RULES, Grid, Regridded, Rule, fit, settle
from wsizoo.slides import store
from wsizoo.slides.facts import SlideFacts
from wsizoo.slides.scale import check_mpp

SAME_SCALE = 1e-3  # relative; two statements of um/px that mean the same
SCALE_ERROR = 0.02  # relative; a patch whose um/px are farther from what was asked says its own
EMPTY = "'{}' holds no patches: nothing was found on its slide, or it was never filled"

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Reading:
    """A bag, and what had to be done to get it.

    Args:
        format: whose file it was. frame: of the bag's coordinates: level-0 px, um, or px of the
            tool's own, where the slide's um/px were not given. contents: as the file has it.
    """

    bag: Bag
    format: str
    frame: str
    regridded: Regridded
    contents: Contents

    @property
    def facts(self) -> SlideFacts:
        """What is known of the slide, to be written with the bag."""
        facts = self.contents.facts or SlideFacts(self.bag.slide_id)
        source = facts.mpp_source
        if self.frame != LEVEL0:
            source = IN_FRAME + self.frame
        elif self.bag.mpp != self.contents.mpp or self.contents.frame != LEVEL0:
            source = "user"
        return dataclasses.replace(facts, slide_id=self.bag.slide_id, mpp_source=source)

    @property
    def rounded(self) -> bool:
        """Whether the file's coordinates stay in its frame and are fractions there."""
        coords = self.contents.coords
        if coords is None or self.frame == LEVEL0:
            return False
        return bool(np.abs(coords - np.rint(coords)).max(initial=0) > EXACT)


@dataclass(frozen=True)
class ReadAs:
    """What a file cannot say itself.

    Args:
        encoder: that made the features, where the file names none. slide_mpp: um per level-0 px.
        coords_mpp: um per unit of the coordinates, where the file's tool used px of its own.
        collisions: what becomes of patches that share a cell of the grid: "error", "nearest",
            "mean" or "first". format: the tool, where the content does not tell.
        table: one of several sets of features in a file.
    """

    encoder: str | None = None
    slide_mpp: float | None = None
    coords_mpp: float | None = None
    collisions: Rule = "error"
    format: str | None = None
    table: str | None = None

    def __post_init__(self) -> None:
        """Raises DataError: no such rule. ScaleError: no scanner's mpp."""
        if self.collisions not in RULES:
            raise DataError(f"collisions is '{self.collisions}', expected {', '.join(RULES)}")
        if self.slide_mpp is not None:
            check_mpp(self.slide_mpp)
        if self.coords_mpp is not None and not 0 < self.coords_mpp < float("inf"):
            raise DataError(f"coords_mpp is {self.coords_mpp}, expected um per unit, above 0")


def read_features(
    path: Path | str,
    encoder: str | None = None,
    slide_mpp: float | None = None,
    collisions: Rule = "error",
    name: str | None = None,
    *,
    coords_mpp: float | None = None,
    format: str | None = None,
    table: str | None = None,
) -> Bag:
    """Read a feature file of wsizoo or of another tool.

    Its coordinates become level-0 px on one grid. Where a tool writes um (STAMP) and `slide_mpp` is
    not given, one unit is 1 um and the bag's mpp is 1.0; where it writes px of its own (SPAN, early
    STAMP), they stay so, and mpp is None: grid, spacing and footprint hold in either frame.

    Args:
        name: of the slide, default the file's. Others: see `ReadAs`.

    Raises:
        DataError: no such file, damaged, of no known format, contradictory, without patches, or
            with patches that share a cell; or it names no encoder, nor do you.
        FingerprintError: you name another encoder than the file.
    """
    how = ReadAs(encoder, slide_mpp, coords_mpp, collisions, format, table)
    return read_with_report(path, how, name).bag


read_bag = read_features  # its name in the package


def read_with_report(
    path: Path | str, how: ReadAs | None = None, name: str | None = None
) -> Reading:
    """As `read_features`, with what had to be done to the coordinates.

    wsizoo's own files in level-0 px come as they are, unless a rule for collisions is chosen.
    """
    how = how or ReadAs()
    format, contents = contents_of(path, how.format, how.table)
    return _read(format, contents, how, name)


def read_places(path: Path | str, how: ReadAs | None = None, name: str | None = None) -> Bag:
    """As `read_features`, but with a column of zeros for features, which are not read."""
    how = how or ReadAs()
    format, contents = contents_of(path, how.format, how.table)
    n = contents.n
    blank = dataclasses.replace(contents, shape=(n, 1), load=lambda: torch.zeros(n, 1))
    return _read(format, blank, how, name, blank=True).bag


def _read(
    format: Format, contents: Contents, how: ReadAs, name: str | None, blank: bool = False
) -> Reading:
    path = contents.path
    how = agreed(format.name, contents, how)
    if contents.embedding:
        raise DataError(
            f"'{path}' holds the embedding of a slide ({contents.dim} numbers), expected features "
            "of its patches (N, D)"
        )
    own = format.name == "wsizoo"
    as_it_is = contents.frame == LEVEL0 and how.coords_mpp is None
    if own and how.collisions == "error" and as_it_is:
        return _own(contents, how, name, blank)
    made = contents.encoder or Fingerprint()
    if not own or how.encoder is not None:
        made = declared(made, how.encoder, contents.path, format.name)
    if contents.n == 0:
        raise DataError(EMPTY.format(contents.path))
    placed = place(contents, how)
    made = with_cut(made, contents, how)
    grid, features, target = placed.grid, contents.features(), contents.target
    if grid is not None:
        grid = settle(grid, placed.coords, how.collisions, f"'{contents.path}'")
        target = _kept(target, grid)
        features = _merged(features, grid, how.collisions)
    bag = Bag(
        features,
        None if grid is None else torch.from_numpy(grid.coords),
        spacing=None if grid is None else grid.report.spacing,
        footprint=placed.footprint,
        mpp=placed.mpp,
        encoder=_realised(made, placed, contents.path),
        slide_id=name or (contents.facts.slide_id if contents.facts else contents.path.stem),
        target=target,
    )
    report = Regridded(len(bag)) if grid is None else grid.report
    return Reading(bag, format.name, placed.frame, report, contents)


def _own(contents: Contents, how: ReadAs, name: str | None, blank: bool) -> Reading:
    bag = _blank(contents) if blank else store.read_bag(contents.path)
    if how.encoder is not None:
        bag = bag.replace(encoder=declared(bag.encoder, how.encoder, contents.path, "wsizoo"))
    report = Regridded(len(bag), bag.spacing)
    bag = bag.replace(slide_id=name or bag.slide_id, mpp=bag.mpp or how.slide_mpp)
    return Reading(bag, "wsizoo", LEVEL0, report, contents)


def _blank(contents: Contents) -> Bag:
    coords = None if contents.coords is None else torch.from_numpy(contents.coords)
    return Bag(
        contents.features(),
        coords,
        spacing=contents.step,
        footprint=contents.footprint,
        mpp=contents.mpp,
        encoder=contents.encoder,
        slide_id=contents.facts.slide_id if contents.facts else contents.path.stem,
        target=contents.target,
    )


def agreed(format: str, contents: Contents, how: ReadAs) -> ReadAs:
    """Without the scales that the file itself states.

    Raises:
        DataError: they contradict the file's. Those of other tools may be wrong of the slide's
            um/px, and are overruled.
    """
    unit = contents.mpp if contents.frame == LEVEL0 else contents.unit
    own_mpp = contents.mpp if format == "wsizoo" and contents.frame == LEVEL0 else None
    for given, stated, what in (
        (how.slide_mpp, own_mpp, "level-0 px, you said {:g}. Leave out --mpp, or extract again"),
        (how.coords_mpp, unit, "unit of its coordinates, you said {:g}. Leave out --coords-mpp"),
    ):
        if given and stated and abs(given - stated) > SAME_SCALE * stated:
            raise DataError(
                f"'{contents.path}' ({format}) states {stated:g} um per {what.format(given)}"
            )
    return dataclasses.replace(
        how,
        slide_mpp=None if own_mpp else how.slide_mpp,
        coords_mpp=None if unit else how.coords_mpp,
    )


@dataclass(frozen=True, eq=False)
class Placed:
    """Coordinates in the frame of a bag, and the grid that fits them; None without coordinates."""

    coords: NDArray[np.float64]
    grid: Grid | None
    footprint: float | None
    mpp: float | None
    frame: str


def place(contents: Contents, how: ReadAs) -> Placed:
    """Bring coordinates into level-0 px as far as scales are known, and find their grid.

    Raises:
        DataError: `slide_mpp` is given of a file whose own px have no known size.
    """
    unit = how.coords_mpp or contents.unit
    by, frame, mpp = 1.0, contents.frame, how.slide_mpp or contents.mpp
    if contents.frame != LEVEL0 or how.coords_mpp:
        if unit is None and how.slide_mpp:
            raise DataError(
                f"'{contents.path}' has coordinates in px of its tool's own, and does not say how "
                "large those are: state it with --coords-mpp, um per such px (early STAMP: "
                "1.142857, that is 256 um in 224 px; 2.0 in files of an image at 2 um/px)"
            )
        mpp = how.slide_mpp or unit
        if unit and how.slide_mpp:
            by, frame = unit / how.slide_mpp, LEVEL0
    if contents.coords is None or contents.n == 0:
        return Placed(np.zeros((0, 2)), None, None, mpp, frame)
    coords = contents.coords.astype(np.float64) * by
    step = contents.step * by if contents.step else None
    edge = contents.footprint * by if contents.footprint else None
    grid = fit(coords, (step, edge))
    return Placed(coords, grid, edge or grid.report.spacing, mpp, frame)


def with_cut(made: Fingerprint, contents: Contents, how: ReadAs) -> Fingerprint:
    """With size and scale of patches that were cut from the image that coordinates are px of."""
    unit, edge = how.coords_mpp or contents.unit, contents.footprint
    if not (contents.own_image and unit and edge) or made.patch_size:
        return made
    return dataclasses.replace(made, patch_size=round(edge), mpp=unit)


def _realised(made: Fingerprint, placed: Placed, path: Path) -> Fingerprint:
    """With the um/px that patches have, where those are known not to be what was asked for."""
    if not (made.mpp and made.patch_size and placed.mpp and placed.footprint):
        return made
    real = placed.footprint * placed.mpp / made.patch_size
    if abs(real - made.mpp) <= SCALE_ERROR * made.mpp:
        return made
    log.warning(
        "'%s': patches were asked for at %.4g um/px and are at %.4g (%+.0f %%)",
        path, made.mpp, real, 100 * (real / made.mpp - 1),
    )  # fmt: skip
    return dataclasses.replace(made, mpp=real)


def _merged(features: Tensor, grid: Grid, rule: Rule) -> Tensor:
    """One row a patch of the grid. Raises DataError: a mean of pixels is none."""
    if len(grid.rows) == len(features):
        return features
    if rule == "mean" and features.ndim == 4:
        raise DataError("patches of pixels have no mean. Choose --collisions nearest or first")
    if rule != "mean":
        return features[torch.from_numpy(grid.rows)]
    groups = torch.from_numpy(grid.groups)
    sums = torch.zeros(len(grid.rows), features.shape[1], dtype=torch.float64)
    sums.index_add_(0, groups, features.double())
    return (sums / torch.bincount(groups)[:, None]).to(features.dtype)


def _kept(target: Any, grid: Grid) -> Any:
    """Per-patch targets of the rows that stay."""
    if target is None or "instances" not in target:
        return target
    instances = torch.as_tensor(target["instances"])
    return {**target, "instances": instances[torch.from_numpy(grid.rows)]}
