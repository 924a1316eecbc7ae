"""Which slides: files, folders that hold them, and manifests that say more of each."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.names import suggest
from wsizoo.slides.scale import EXPECTED, is_plausible
from wsizoo.tables import PATIENT_COLUMNS

SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".btf", ".qptiff", ".ndpi", ".vms", ".vmu"}
    | {".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi"}
)
MANIFEST = ".csv"
# Names of columns, of which a manifest may have one each; a path before an id.
COLUMNS = {
    "slide": ("slide_path", "path", "filepath", "filename", "file", "wsi", "slide", "slide_id"),
    "mpp": ("mpp",),
    "patient": PATIENT_COLUMNS,
    "label": ("label",),
}
SHOWN = 10  # missing files that are named


@dataclass(frozen=True)
class SlideEntry:
    """One slide and what a manifest says of it.

    Args:
        mpp: um per level-0 px.
    """

    path: Path
    mpp: float | None = None
    patient: str | None = None
    label: str | None = None

    @property
    def slide_id(self) -> str:
        """The file's name without its last suffix, which names outputs."""
        return self.path.stem


def list_slides(
    inputs: Sequence[Path | str] | Path | str, suffixes: Iterable[str] = SLIDE_SUFFIXES
) -> list[SlideEntry]:
    """Slides given as files, as folders (those with these suffixes), or as manifests (.csv).

    A slide that is given twice is listed once, with what a manifest says of it.

    Raises:
        DataError: something is not there, a manifest cannot be understood, two say different things
            of a slide, two slides have one name, or there is none.
    """
    suffixes = frozenset(suffixes)
    found: dict[Path, SlideEntry] = {}
    for item in map(Path, [inputs] if isinstance(inputs, (Path, str)) else inputs):
        if item.suffix.lower() == MANIFEST and item.is_file():
            entries = read_manifest(item, suffixes)
        else:
            entries = [SlideEntry(file) for file in list_files([item], suffixes)]
        for entry in entries:
            _add(found, entry)
    if not found:
        raise DataError("No slides given")
    check_one_name_each([entry.path for entry in found.values()])
    return list(found.values())


def _add(found: dict[Path, SlideEntry], entry: SlideEntry) -> None:
    there = found.setdefault(entry.path.resolve(), entry)
    if there == entry or entry == SlideEntry(entry.path):
        return
    if there != SlideEntry(there.path) and replace(there, path=entry.path) != entry:
        raise DataError(f"Two manifests differ on '{entry.path}': {there} and {entry}")
    found[entry.path.resolve()] = entry


def read_manifest(path: Path | str, suffixes: Iterable[str] = SLIDE_SUFFIXES) -> list[SlideEntry]:
    """Read a csv with a line a slide: its file, and, if known, mpp, patient and label.

    Files are relative to the folder of the manifest; a name without suffix is that of the one file
    of these suffixes there. Names of columns are those of `COLUMNS`, in any case; others are left
    out. Commas, semicolons or tabs separate.

    Raises:
        DataError: names file, line and column.
    """
    path = Path(path)
    header, rows = _rows(path)
    columns = _columns(path, header)
    entries: dict[Path, tuple[int, SlideEntry]] = {}
    missing = []
    for number, cells in rows:
        row = dict(zip(header, cells, strict=True))
        told = {what: row[name] for what, name in columns.items() if row[name]}
        where = f"'{path}', line {number}"
        if "slide" not in told:
            raise DataError(f"{where}, column {columns['slide']}: empty, expected a slide's file")
        file = _find(path.parent / told["slide"], frozenset(suffixes), where)
        mpp = _read_mpp(told["mpp"], where, columns["mpp"]) if "mpp" in told else None
        if file is None:
            missing.append(f"line {number}: {told['slide']}")
            continue
        first, _ = entries.get(file.resolve(), (0, None))
        if first:
            raise DataError(f"{where}: '{file}' stands in line {first} already; keep one of them")
        entry = SlideEntry(file, mpp, told.get("patient"), told.get("label"))
        entries[file.resolve()] = (number, entry)
    if missing:
        raise DataError(_describe_missing(path, columns["slide"], missing))
    return [entry for _, entry in entries.values()]


def _rows(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (line, cells) of the others that are not empty."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds binary data")
        first = next((line for line in text.splitlines() if line.strip()), "")
        separator = max(",;\t", key=first.count)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        rows = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
    except OSError as error:
        raise DataError(f"Manifest '{path}' cannot be read: {error}") from error
    except (ValueError, csv.Error) as error:
        raise DataError(
            f"Manifest '{path}' is no csv ({error}); expected text such as: slide,mpp"
        ) from error
    rows = [(number, cells) for number, cells in rows if any(cells)]
    if len(rows) < 2:
        raise DataError(f"Manifest '{path}' lists no slide; expected a header and a line a slide")
    header = rows[0][1]
    for number, cells in rows[1:]:
        if len(cells) != len(header):
            raise DataError(
                f"'{path}', line {number} has {len(cells)} cells, its header {len(header)}: "
                f"put cells that hold '{separator}' into quotes"
            )
    return header, rows[1:]


def _columns(path: Path, header: Sequence[str]) -> dict[str, str]:
    """The column of `header` that tells each thing, for those that one does."""
    plain = [name.lower().replace(" ", "_") for name in header]
    columns = {}
    for what, names in COLUMNS.items():
        present = [name for name in names if name in plain]
        if not present:
            continue
        if plain.count(present[0]) > 1:
            raise DataError(f"'{path}', line 1: column {present[0]} stands twice; rename one")
        columns[what] = header[plain.index(present[0])]
    if "slide" not in columns:
        near = suggest("slide", header, "It has the columns ")
        raise DataError(
            f"'{path}', line 1: no column of slides, expected one named "
            f"{', '.join(COLUMNS['slide'])}. {near}"
        )
    return columns


def _find(path: Path, suffixes: frozenset[str], where: str) -> Path | None:
    """The file itself, or the one with a suffix to its name. Raises DataError for several."""
    if path.is_file():
        return path
    if path.suffix.lower() in suffixes or not path.parent.is_dir():
        return None
    named = [path.with_name(path.name + suffix) for suffix in sorted(suffixes)]
    named += [path.with_name(path.name + suffix.upper()) for suffix in sorted(suffixes)]
    files = {file.resolve(): file for file in named if file.is_file()}
    if len(files) > 1:
        names = " and ".join(f"'{file}'" for file in files.values())
        raise DataError(f"{where}: {path.name} may be {names}; write the one that is meant")
    return next(iter(files.values()), None)


def _read_mpp(text: str, where: str, column: str) -> float:
    try:
        mpp = float(text.replace(",", "."))  # some spreadsheets write 0,25
    except ValueError:
        mpp = math.nan
    if not is_plausible(mpp):
        raise DataError(f"{where}, column {column}: '{text}' is no scan's scale; {EXPECTED}")
    return mpp


def _describe_missing(path: Path, column: str, missing: Sequence[str]) -> str:
    more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
    return (
        f"'{path}', column {column}: {len(missing)} of its slides are not there: "
        f"{'; '.join(missing[:SHOWN])}{more}. Their place is relative to '{path.parent}'"
    )


def list_files(inputs: Iterable[Path | str], suffixes: Iterable[str]) -> list[Path]:
    """Files as given, and the files with these suffixes inside given folders, sorted; each once.

    Raises:
        DataError: something is not there, or a folder holds none.
    """
    found: dict[Path, Path] = {}
    for item in map(Path, inputs):
        if not item.exists():
            raise DataError(f"No file or folder at '{item}'")
        for file in _inside(item, frozenset(suffixes)) if item.is_dir() else [item]:
            found.setdefault(file.resolve(), file)
    if not found:
        raise DataError("No slides given")
    return list(found.values())


def _inside(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    def wanted(file: Path) -> bool:
        return file.suffix.lower() in suffixes and file.name[0] != "." and file.is_file()

    files = sorted(filter(wanted, folder.iterdir()))
    if not files:
        deeper = next(filter(wanted, folder.rglob("*")), None)
        hint = f". Folders in it are not searched; give them: '{deeper.parent}'" if deeper else ""
        kinds = ", ".join(sorted(suffixes))
        raise DataError(f"'{folder}' is a folder that holds no file ending in {kinds}{hint}")
    return files


def check_one_name_each(files: Sequence[Path]) -> None:
    """Raise DataError when two slides would write one file."""
    first: dict[str, Path] = {}
    for file in files:
        if file.stem in first:
            raise DataError(
                f"'{first[file.stem]}' and '{file}' have one name ({file.stem}), so the outputs of "
                "one would replace those of the other. Give only one of them, or rename one"
            )
        first[file.stem] = file
