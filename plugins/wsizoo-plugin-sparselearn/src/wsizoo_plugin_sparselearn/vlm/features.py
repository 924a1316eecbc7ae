"""From the slides that questions name to the files of their features."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.formats.read import ReadAs, read_with_report
from wsizoo.sources import FEATURE_SUFFIXES
from wsizoo_plugin_sparselearn.vlm.questions import slide_name

KINDS = FEATURE_SUFFIXES | {".csv"}  # of SlideChat
CASE = re.compile(r"TCGA-[A-Z0-9]{2}-[A-Z0-9]{4}")
DIAGNOSTIC = "DX1"
"""In names of the slides that WSI-VQA means by a patient of TCGA."""


@dataclass
class FeatureFolder:
    """Feature files of any tool, in a folder and those within it, by slide.

    Args:
        how: what the files do not say themselves.

    Raises:
        DataError: no such folder, or no feature files in it.
    """

    folder: Path
    how: ReadAs = field(default_factory=ReadAs)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise DataError(f"no folder of features at '{self.folder}'")
        self.files: dict[str, list[Path]] = {}
        for path in sorted(self.folder.rglob("*")):
            if path.suffix.lower() in KINDS and not path.name.startswith("."):
                self.files.setdefault(slide_name(path.name), []).append(path)
        if not self.files:
            kinds = ", ".join(sorted(KINDS))
            raise DataError(f"'{self.folder}' holds no feature files ({kinds})")
        self._names = sorted(self.files)

    def find(self, slide: str) -> Path | None:
        """The file of a slide; None: there is none.

        That is the file of its name; else the one whose name goes on behind it, as barcodes of
        TCGA do (`NAME.UUID.h5`). Of a patient of TCGA it is the one with `DX1` in its name.

        Raises:
            DataError: several files fit.
        """
        name = slide_name(slide)
        found = self.files.get(name) or self._longer(name)
        if len(found) > 1:
            shown = ", ".join(f"'{path}'" for path in found[:3])
            raise DataError(
                f"slide '{slide}' could be any of {len(found)} files in '{self.folder}': {shown}. "
                "Move all but one away"
            )
        return found[0] if found else None

    def _longer(self, name: str) -> list[Path]:
        start = bisect.bisect_left(self._names, name)
        longer = []
        for each in self._names[start:]:
            if not each.startswith(name):
                break
            if not each[len(name)].isalnum():
                longer.append(each)
        if CASE.fullmatch(name):
            longer = [each for each in longer if DIAGNOSTIC in each]
        return [path for each in longer for path in self.files[each]]

    def find_all(self, slides: Iterable[str]) -> dict[str, Path]:
        """The file of each slide that has one. Raises as `find`."""
        found = {slide: self.find(slide) for slide in dict.fromkeys(slides)}
        return {slide: path for slide, path in found.items() if path is not None}

    def read(self, path: Path) -> Bag:
        """The bag in a file, under the slide's name. Raises as `wsizoo.read_bag`."""
        return read_with_report(path, self.how, slide_name(path.name)).bag
