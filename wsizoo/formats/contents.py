"""What a feature file says, whoever wrote it, before it becomes a bag; and what a format is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import DataError, WsizooError
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.facts import SlideFacts

log = logging.getLogger(__name__)

LEVEL0, MICRONS, OWN = "level-0 px", "um", "px of the tool's own"
FRAMES = (LEVEL0, MICRONS, OWN)
IN_FRAME = "coordinates are in "  # with a frame: what wsizoo's files say where it is not LEVEL0

# What a file may have no place for, as people call it.
PLACES, SCALE, MPP, OVERLAP, FRACTIONS = (
    "coordinates", "place and scale", "um/px", "overlap", "fractions of the step",
)  # fmt: skip
ENCODER, DETAILS = "encoder", "weights and preprocessing of the encoder"
LABEL, INSTANCES, UNREADABLE = "label", "labels of patches", "list of unreadable patches"
ROUNDING = 1.0  # px by which a patch's edge and the step may differ without overlap


@contextmanager
def guarded(path: Path) -> Iterator[None]:
    """Whatever a parser says of a damaged file becomes one DataError; there is no end of kinds."""
    try:
        yield
    except WsizooError:
        raise
    except Exception as error:
        log.debug("while reading %s", path, exc_info=error)
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"'{path}' cannot be read: {told}. It is truncated or damaged: copy it again, or make "
            "it again"
        ) from error


@dataclass(frozen=True, eq=False)
class Contents:
    """One slide in a file of any tool; its features are read when `load` is called.

    Args:
        files: all that were looked into. shape: (N, D), or (N, 3, H, W). dtype: of the features.
        load: gives the features, of that shape.
        coords: (N, 2) top-left corners in `frame`, or None. frame: LEVEL0, MICRONS or OWN.
        unit: um per unit of `coords`, None where the file does not say; for LEVEL0 see `mpp`.
        step, footprint: between neighbours, and edge of a patch, in units of `coords`.
        mpp: um per level-0 px. encoder: what the file says made it.
        own_image: the tool cut patches from an image whose px those of frame OWN are.
        target: as in `Bag`. facts: of the slide. attributes: the tool's own, for writing them back.
        embedding: this is one vector of the whole slide, (1, D), made by the model that
            `attributes` names, and no features of patches.
    """

    files: tuple[Path, ...]
    shape: tuple[int, ...]
    dtype: str
    load: Callable[[], Tensor]
    coords: NDArray[Any] | None = None
    frame: str = LEVEL0
    unit: float | None = None
    step: float | None = None
    footprint: float | None = None
    mpp: float | None = None
    encoder: Fingerprint | None = None
    own_image: bool = False
    target: Mapping[str, Any] | None = None
    facts: SlideFacts | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    embedding: bool = False

    def features(self) -> Tensor:
        """The features. Raises DataError: they are damaged."""
        with guarded(self.path):
            return self.load()

    @property
    def path(self) -> Path:
        return self.files[0]

    @property
    def n(self) -> int:
        return self.shape[0]

    @property
    def dim(self) -> int | None:
        """Numbers of a vector; pixels have none."""
        return None if len(self.shape) == 4 else self.shape[1]


@dataclass(frozen=True)
class Look:
    """What a glance at a file shows, enough to recognise its format.

    Args:
        kind: "hdf5", "torch", "npy", "csv", "zarr", "folder" or "".
        shapes: of the datasets of an HDF5 file by name, None for a group.
        attributes: names of the root's; `coords_attributes`, `features_attributes` of theirs.
    """

    path: Path
    kind: str
    shapes: Mapping[str, tuple[int, ...] | None] = field(default_factory=dict)
    attributes: frozenset[str] = frozenset()
    coords_attributes: frozenset[str] = frozenset()
    features_attributes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Written:
    """What a writer is given beside the bag.

    Args:
        facts: of its slide. source: the file, where the bag came from one of the same format.
        frame: of its coordinates. rounded: those were no whole numbers in that frame.
    """

    facts: SlideFacts
    source: Contents | None = None
    frame: str = LEVEL0
    rounded: bool = False

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Those that the bag had as a file of the same format."""
        return {} if self.source is None else self.source.attributes


@dataclass(frozen=True)
class Format:
    """How the files of one tool are recognised, read and written.

    Args:
        layout: one line for people. recognises: whether a file is of this format.
        read: (path, table) -> Contents; `table` names one of several sets of features in a file.
        targets: (folder, slide) -> the files of one slide that `write` makes, the last one last.
        write: (bag, what else is known, folder) -> what its files have no place for, of the
            names above; None: is not written.
        frames: those of coordinates that it can be written from. pixels: whether it keeps them.
        bags: the files of the slides in a folder or list of this format, with their targets.
        finish: (folder, bags by slide) after all slides were written.
    """

    name: str
    layout: str
    recognises: Callable[[Look], bool]
    read: Callable[[Path, str | None], Contents]
    targets: Callable[[Path, str], Sequence[Path]] | None = None
    write: Callable[[Bag, Written, Path], Sequence[str]] | None = None
    bags: Callable[[Path], Sequence[tuple[Path, Mapping[str, Any] | None]]] | None = None
    finish: Callable[[Path, Mapping[str, Bag]], None] | None = None
    frames: Sequence[str] = (LEVEL0,)
    pixels: bool = False


def overlaps(bag: Bag) -> bool:
    """Whether patches are wider than they are apart, or narrower, by more than rounding."""
    edge, step = bag.footprint, bag.spacing
    return edge is not None and step is not None and abs(edge - step) > ROUNDING


def check_one_step(bag: Bag, files: str) -> None:
    """Raise DataError where patches overlap, of which `files` could not tell."""
    if overlaps(bag):
        raise DataError(
            f"slide '{bag.slide_id}': its patches are {bag.footprint:g} wide and {bag.spacing:g} "
            f"apart; {files}, so they would come back as others. Convert to wsizoo or trident, or "
            "extract without overlap: wsizoo extract SLIDE -e ENCODER --overlap 0"
        )


def checked(contents: Contents) -> Contents:
    """The contents, if its parts fit together.

    Raises:
        DataError: features that are no float vectors or uint8 pixels, another number of
            coordinates, or coordinates that are no finite, positive pairs.
    """
    path, shape = contents.path, contents.shape
    kind = np.dtype(contents.dtype).kind
    vectors = len(shape) == 2 and (kind == "f" or shape[0] == 0)
    if not (vectors or (len(shape) == 4 and contents.dtype == "uint8")):
        raise DataError(
            f"'{path}': features are {shape} {contents.dtype}, expected (N, D) floats, one row a "
            "patch"
        )
    if contents.coords is not None:
        _check_coords(path, contents.coords, shape[0])
    return contents


def _check_coords(path: Path, coords: NDArray[Any], n: int) -> None:
    if coords.dtype.kind not in "iuf" or coords.ndim != 2 or coords.shape[1] != 2:
        raise DataError(
            f"'{path}': coordinates are {coords.shape} {coords.dtype}, expected (N, 2) numbers, "
            "(x, y) of each patch's top-left corner"
        )
    if len(coords) != n:
        raise DataError(
            f"'{path}' has {n} rows of features and {len(coords)} of coordinates, expected one "
            "each: it was interrupted while it was written, or edited. Make it again"
        )
    bad = np.flatnonzero(~np.isfinite(coords).all(1) | (coords < 0).any(1))
    if len(bad):
        x, y = coords[bad[0]]
        raise DataError(
            f"'{path}': {len(bad)} of {n} coordinates are negative, NaN or infinite, first row "
            f"{bad[0]}: ({x:g}, {y:g}); expected positions in the slide"
        )
