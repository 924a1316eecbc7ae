"""What a feature file or a slide is, without reading its features."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wsizoo.errors import DataError, ScaleError, SlideError, WsizooError
from wsizoo.formats.contents import LEVEL0, Contents, guarded
from wsizoo.formats.detect import FORMATS, contents_of, detect, look
from wsizoo.formats.encoders import declared
from wsizoo.formats.read import EMPTY, ReadAs, agreed, place, with_cut
from wsizoo.slides.manifest import SLIDE_SUFFIXES
from wsizoo.slides.reader import Slide, open_slide
from wsizoo.slides.store import check_content

EMBEDDING = "-embedding"  # ends the format of a file with one vector of a whole slide
IMAGES = SLIDE_SUFFIXES | {".png", ".jpg", ".jpeg", ".bmp", ".webp"}


@dataclass(frozen=True)
class Inspection:
    """What is known of a file; None where it does not say, or where that has no meaning.

    Args:
        format: the tool that wrote it, or what a slide is. n: patches; 1 of a slide's embedding.
        dim: width of the features; pixels have none. dtype: of the features.
        encoder: its name in the zoo, else the tool's; of an embedding the one its model takes.
        fingerprint: all that is known of the encoder. model: that made an embedding.
        spacing: between patches, footprint: edge of one, in px of `frame`. mpp: um per such px.
        frame: "level-0 px", "um" or "px of the tool's own". patch_mpp: um/px of what was encoded.
        on_grid: whether each patch has a cell of its own on one grid; `moved` are to be moved to
            be so, `collisions` share a cell with another.
        complete: whether the file is whole, as far as a glance tells. reason: what is wrong.
        width, height: level-0 px. levels: downsamples of a slide.
    """

    path: str
    format: str | None = None
    n: int | None = None
    dim: int | None = None
    dtype: str | None = None
    encoder: str | None = None
    fingerprint: dict[str, Any] | None = None
    model: str | None = None
    spacing: float | None = None
    footprint: float | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    frame: str | None = None
    patch_mpp: float | None = None
    on_grid: bool | None = None
    moved: int | None = None
    collisions: int | None = None
    width: int | None = None
    height: int | None = None
    levels: list[float] | None = None
    complete: bool = False
    reason: str = ""

    @property
    def is_embedding(self) -> bool:
        """Whether it holds one vector of a whole slide."""
        return (self.format or "").endswith(EMBEDDING)

    def to_json(self) -> dict[str, Any]:
        """Every field, by name."""
        return dataclasses.asdict(self)


def inspect(path: Path | str, how: ReadAs | None = None, verify: bool = False) -> Inspection:
    """What a file is. It never raises for what is wrong with the file: that is its `reason`.

    Args:
        how: what the file cannot say itself. verify: read the features too, and hold those of
            wsizoo's own files to their digest, those of others to be finite.

    Cost: coordinates are read, features are not, unless they are to be verified.
    """
    path, how = Path(path), how or ReadAs()
    if not path.exists():
        return Inspection(str(path), reason=f"There is no file '{path}'")
    try:
        if path.suffix.lower() in IMAGES and how.format is None and _is_no_features(path):
            return _of_slide(path, how)
    except WsizooError as error:
        return Inspection(str(path), reason=str(error))
    name = how.format
    try:
        name = name or _bare(path) or detect(path).name
        _, contents = contents_of(path, name, how.table)
        found = _of_features(name, contents, how)
        return _verified(found, contents) if verify else found
    except WsizooError as error:
        return Inspection(str(path), name, reason=str(error))


def _bare(path: Path) -> str | None:
    """The format of an array that says nothing of itself, which does no harm to look at."""
    with guarded(path):
        seen = look(path)
        known = any(each.recognises(seen) for each in FORMATS.values())
    return None if known else {"torch": "pt", "npy": "npy"}.get(seen.kind)


def check(path: Path | str) -> Inspection:
    """What a feature file is, every byte of it looked at, as `inspect` with `verify`.

    Raises:
        DataError: it is damaged, contradictory, of no known format, or not finite.
    """
    found = inspect(path, verify=True)
    if not found.complete:
        raise DataError(found.reason)
    return found


def _is_no_features(path: Path) -> bool:
    return look(path).kind == ""


def _of_features(format: str, contents: Contents, how: ReadAs) -> Inspection:
    how = agreed(format, contents, how)
    placed = place(contents, how)
    report = None if placed.grid is None else placed.grid.report
    made, facts = contents.encoder, contents.facts
    if how.encoder is not None:
        made = declared(made, how.encoder, contents.path, format)
    made = made and with_cut(made, contents, how)
    size = made.patch_size if made else None
    real = (
        placed.footprint * placed.mpp / size if placed.footprint and placed.mpp and size else None
    )
    level0 = placed.frame == LEVEL0
    return Inspection(
        str(contents.path),
        format.removesuffix(EMBEDDING) + EMBEDDING if contents.embedding else format,
        contents.n,
        contents.dim,
        contents.dtype,
        encoder=made.encoder if made else None,
        model=contents.attributes.get("model") if contents.embedding else None,
        fingerprint=made.to_json() if made else None,
        spacing=report.spacing if report else contents.step,
        footprint=placed.footprint or contents.footprint,
        mpp=placed.mpp,
        mpp_source=facts.mpp_source if facts and how.slide_mpp is None else None,
        frame=placed.frame if contents.coords is not None else None,
        patch_mpp=real,
        on_grid=report.on_grid if report else None,
        moved=report.moved if report else None,
        collisions=report.collisions if report else None,
        width=facts.width if facts and level0 else None,
        height=facts.height if facts and level0 else None,
        complete=True,
        reason=_remark(contents),
    )


def _remark(contents: Contents) -> str:
    """What is to be known of a file that is whole."""
    forced = contents.attributes.get("forced") if contents.embedding else None
    if forced:
        return f"'{contents.path}' was made with --force, of other features: {forced}"
    return "" if contents.n else EMPTY.format(contents.path)


def _verified(found: Inspection, contents: Contents) -> Inspection:
    """With `complete` and `reason` after a look at every byte."""
    if found.format == "wsizoo":
        check_content(contents.path)
        return found
    features = contents.features().numpy()
    bad = np.flatnonzero(~np.isfinite(features).reshape(len(features), -1).all(1))
    if len(bad) == 0:
        return found
    reason = (
        f"'{found.path}': {len(bad)} of {len(features)} patches have NaN or infinite features, "
        f"first patch {bad[0]}"
        if not contents.embedding
        else f"'{found.path}': its embedding has NaN or infinite numbers"
    )
    return dataclasses.replace(found, complete=False, reason=reason)


def _of_slide(path: Path, how: ReadAs) -> Inspection:
    """A slide, also one that states no um/px."""
    try:
        with open_slide(path, how.slide_mpp) as slide:
            return _told(slide, slide.mpp, slide.mpp_source, "")
    except ScaleError as error:
        with open_slide(path, 1.0) as slide:
            return _told(slide, None, None, str(error))


def _told(slide: Slide, mpp: float | None, source: str | None, reason: str) -> Inspection:
    width, height = slide.size
    damage = _damage(slide)
    return Inspection(
        str(slide.path),
        slide.format,
        mpp=mpp,
        mpp_source=source,
        width=width,
        height=height,
        levels=[round(float(downsample), 6) for downsample in slide.downsamples],
        complete=not damage,
        reason=damage or reason,
    )


def _damage(slide: Slide) -> str:
    """Why a slide is not whole, as far as can be told without decoding it; or ""."""
    width, height = slide.size
    try:
        for level in range(len(slide.downsamples)):
            slide.read(width - 1, height - 1, 1, 1, level)
    except SlideError as error:
        return str(error)
    lost = _bytes_lost(slide.path)
    return f"{slide.path} was cut short: {lost} bytes of its image are missing" if lost else ""


def _bytes_lost(path: Path) -> int:
    """What a TIFF's directories promise beyond the end of the file."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            ends = [
                offset + count
                for page in tiff.pages
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)
            ]
    except Exception:  # no TIFF, or one that only its vendor's reader understands
        return 0
    return max(0, max(ends, default=0) - path.stat().st_size)
