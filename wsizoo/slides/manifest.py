"""STUB of the reader branch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wsizoo.errors import DataError


@dataclass(frozen=True)
class SlideEntry:
    path: Path
    mpp: float | None = None
    patient: str | None = None
    label: str | None = None

    @property
    def slide_id(self) -> str:
        return self.path.stem


SLIDE_SUFFIXES = frozenset(
    {".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu"}
    | {".scn", ".mrxs", ".svslide", ".bif", ".dcm", ".czi"}
)


def list_slides(inputs, suffixes):
    return [SlideEntry(p) for p in list_files(inputs, suffixes)]


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
