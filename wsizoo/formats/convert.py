"""Feature files of one tool into those of another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wsizoo.bag import Bag
from wsizoo.errors import DataError, reason_of
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats import contents as parts
from wsizoo.formats.contents import IN_FRAME, LEVEL0, OWN, Format, Written, overlaps
from wsizoo.formats.detect import FORMATS, TENSORS, detect, is_zarr, look
from wsizoo.formats.read import ReadAs, Reading, read_with_report

HDF5 = (".h5", ".hdf5")
WRITABLE = [name for name, each in FORMATS.items() if each.write is not None]


@dataclass(frozen=True)
class Converted:
    """What became of one slide.

    Args:
        files: what was written. told: what had to be done to its coordinates, and what these files
            have no place for, one line.
        reason: why it failed; "" where it did not.
    """

    slide_id: str
    source: Path
    files: tuple[Path, ...] = ()
    n: int = 0
    format: str = ""
    told: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Source:
    """A file of one slide, and what a list of files says of it."""

    path: Path
    target: Mapping[str, Any] | None = field(default=None, compare=False)
    format: str | None = None


def convert(
    inputs: Sequence[Path | str] | Path | str,
    out: Path | str,
    to: str = "wsizoo",
    *,
    how: ReadAs | None = None,
    overwrite: bool = False,
    after_slide: Callable[[Converted], None] | None = None,
) -> list[Converted]:
    """Write feature files as another tool's. A file that fails is reported, the others go on.

    Files appear complete or not at all.

    Args:
        inputs: files, and folders or lists of them (a torchmil folder, a csv of MIL_BASELINE).
        out: a folder, or, of one slide, a file that ends in .h5.
        to: name of a format that is written. how: what the files cannot say themselves.
        overwrite: replace files that are there.
        after_slide: called with each result.

    Raises:
        DataError: nothing to convert, two slides of one name, or a format that is not written.
    """
    if to not in WRITABLE:
        raise DataError(f"'{to}' is not written; choose one of: {', '.join(WRITABLE)}")
    given = [inputs] if isinstance(inputs, str | Path) else inputs
    sources = list_sources(given)
    folder, name = _place(Path(out), sources, FORMATS[to])
    work = _Work(FORMATS[to], folder, how or ReadAs(), overwrite, name)
    results = []
    for source in sources:
        results.append(work.attempt(source))
        if after_slide:
            after_slide(results[-1])
    work.finish()
    return results


def _place(out: Path, sources: Sequence[Source], to: Format) -> tuple[Path, str | None]:
    """The folder that is written into, and the name of the one slide, where `out` is its file."""
    if out.suffix not in HDF5:
        return out, None
    assert to.targets is not None
    if len(sources) > 1:
        raise DataError(f"'{out}' is one file for {len(sources)} slides; give a folder")
    if list(to.targets(out.parent, out.stem)) != [out]:
        raise DataError(f"{to.name} keeps a slide in files of its own; give a folder, not '{out}'")
    return out.parent, out.stem


def list_sources(inputs: Sequence[Path | str]) -> list[Source]:
    """The feature files that were given, one a slide.

    Raises:
        DataError: none, not there, or two of one name.
    """
    found: dict[str, Source] = {}
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"'{item}' is not there")
        for source in _sources(item):
            other = found.setdefault(source.path.stem, source)
            if other.path.resolve() != source.path.resolve():
                raise DataError(
                    f"'{other.path}' and '{source.path}' have one name ({source.path.stem}), so "
                    "what is written of one would replace that of the other. Give one of them"
                )
    return list(found.values())


def _sources(item: Path) -> list[Source]:
    if item.is_file() and item.suffix != ".csv":
        return [Source(item)]
    if item.is_dir() and is_zarr(item):
        return [Source(item)]
    seen = look(item)
    for each in FORMATS.values():
        if each.bags is not None and each.recognises(seen):
            return [Source(*listed, _format_of(listed[0], each)) for listed in each.bags(item)]
    if item.is_file():
        raise DataError(f"'{item}' is a table without the columns slide_path and label")
    return _inside(item)


def _format_of(file: Path, listed: Format) -> str | None:
    """The list's format, for a file that does not tell its own."""
    try:
        detect(file)
    except DataError:
        return listed.name
    return None


def _inside(folder: Path) -> list[Source]:
    """Feature files of a folder, or of the folder in it that CLAM keeps them in."""
    for name in ("h5_files", "pt_files"):
        if (folder / name).is_dir():
            return _inside(folder / name)
    files = sorted(file for file in folder.iterdir() if file.name[0] != ".")
    found = {file.stem: file for file in files if file.suffix in HDF5 or is_zarr(file)}
    for file in files:
        if file.suffix in TENSORS:
            found.setdefault(file.stem, file)
    if not found:
        raise DataError(f"'{folder}' holds no feature files (.h5, .pt, .zarr)")
    return [Source(file) for file in found.values()]


@dataclass
class _Work:
    """One conversion; arguments as of `convert`."""

    to: Format
    out: Path
    how: ReadAs
    overwrite: bool
    name: str | None = None
    written: dict[str, Bag] = field(default_factory=dict)

    def attempt(self, source: Source) -> Converted:
        """One slide; what fails is its reason."""
        slide = self.name or source.path.stem
        try:
            return self.run(source, slide)
        except OSError as error:
            return Converted(slide, source.path, reason=f"'{self.out}' cannot be written: {error}")
        except Exception as error:
            return Converted(slide, source.path, reason=reason_of(error))

    def run(self, source: Source, slide: str) -> Converted:
        assert self.to.targets is not None and self.to.write is not None
        targets = self.to.targets(self.out, slide)
        there = [file for file in targets if file.exists()]
        if there and not self.overwrite:
            raise DataError(
                f"'{there[0]}' exists. Choose another folder, or replace it: --overwrite"
            )
        how = dataclasses.replace(self.how, format=self.how.format or source.format)
        reading = read_with_report(source.path, how, slide)
        _check_takes(self.to, reading, how)
        bag = reading.bag
        if source.target is not None:
            bag = bag.replace(target={**(bag.target or {}), **source.target})
        same = reading.contents if reading.format == self.to.name else None
        told = Written(reading.facts, same, reading.frame, reading.rounded)
        lacks = self.to.write(bag, told, self.out)
        if self.to.finish is not None:
            self.written[slide] = bag.replace(features=bag.features[:0], coords=None)
        files = tuple(file for file in targets if file.exists())
        line = _told(reading, self.to.name, _lost(bag, lacks))
        return Converted(slide, source.path, files, len(bag), reading.format, line)

    def finish(self) -> None:
        if self.to.finish is not None and self.written:
            self.to.finish(self.out, self.written)


def _check_takes(to: Format, reading: Reading, how: ReadAs) -> None:
    """Raise DataError unless a format has a place for such features, and for their frame."""
    bag, frame = reading.bag, reading.frame
    if bag.features.ndim == 4 and not to.pixels:
        raise DataError(
            f"slide '{bag.slide_id}': its file has pixels {tuple(bag.features.shape)}, {to.name} "
            "files have one vector a patch. Encode the slide: wsizoo extract SLIDE -e ENCODER"
        )
    if bag.coords is not None and frame not in to.frames:
        unit = how.coords_mpp or reading.contents.unit
        needed = " and --coords-mpp 1.142857" if frame == OWN and unit is None else ""
        raise DataError(
            f"slide '{bag.slide_id}': its coordinates are in {frame}, those of {to.name} files in "
            f"{' or '.join(to.frames)}. State --mpp 0.25{needed}"
        )


def _lost(bag: Bag, lacks: Sequence[str]) -> list[str]:
    """Of what a format has no place for, what the bag had."""
    made, target, step = bag.encoder or Fingerprint(), bag.target or {}, bag.spacing or 0.0
    placed = bag.coords is not None
    had = {
        parts.PLACES: placed,
        parts.SCALE: placed,
        parts.MPP: placed and bag.mpp is not None,
        parts.OVERLAP: placed and overlaps(bag),
        parts.FRACTIONS: placed and step != round(step),
        parts.ENCODER: made.encoder is not None,
        parts.DETAILS: any((made.revision, made.weights, made.preprocessing, made.pooling)),
        parts.LABEL: "label" in target,
        parts.INSTANCES: "instances" in target,
        parts.UNREADABLE: True,
    }
    lost = [what for what in lacks if had[what]]
    return [what for what in lost if what != parts.DETAILS or parts.ENCODER not in lost]


def _told(reading: Reading, to: str, lost: Sequence[str]) -> str:
    said = [reading.regridded.told()]
    if reading.bag.coords is not None and reading.frame != LEVEL0:
        said.append(IN_FRAME + reading.frame)
    if lost:
        said.append(f"{to} keeps no {', no '.join(lost)}")
    return ", ".join(part for part in said if part)
