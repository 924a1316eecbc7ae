"""Recipes: configs without data, in the folders `recipes/` of wsizoo and of its plugins.

A plugin's is the folder beside the module with its hooks; nothing of the plugin is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.names import suggest

GROUP = "wsizoo"  # of entry points
FOLDER = "recipes"
SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Recipe:
    """A recipe that is shipped.

    Args:
        owner: the distribution that brings it. summary: the first line of its comment.
        source: the paper's or its code's address, "no paper", or "" where the comment names none.
    """

    name: str
    file: Path
    owner: str
    summary: str
    source: str


def recipes(entry_points: Sequence[Any] | None = None) -> dict[str, Recipe]:
    """All recipes by name, those of the core first.

    Args:
        entry_points: of plugins, instead of the installed ones; value and dist are read.

    Raises:
        SpecError: two of one name.
    """
    if entry_points is None:
        entry_points = list(importlib.metadata.entry_points(group=GROUP))
    folders = {Path(__file__).parent / FOLDER: "wsizoo"}
    for point in sorted(entry_points, key=lambda p: str(p.value)):
        owner = str(point.dist.name) if point.dist is not None else str(point.value)
        for folder in _beside(str(point.value)):
            folders.setdefault(folder / FOLDER, owner)
    found: dict[str, Recipe] = {}
    for folder, owner in folders.items():
        for file in sorted(folder.glob("*.yaml")):
            if file.stem in found:
                raise SpecError(
                    f"the recipe '{file.stem}' of {owner} exists already in "
                    f"{found[file.stem].owner}: uninstall one, or ask its author to rename it"
                )
            found[file.stem] = Recipe(file.stem, file, owner, *_comment(file))
    return found


def recipe_names() -> list[str]:
    """Names of all recipes, sorted."""
    return sorted(recipes())


def find_recipe(name: str) -> Path:
    """The file of a recipe: one that is shipped, or `name` itself where it names a YAML file.

    Raises:
        NotFoundError: with near names.
    """
    if is_file(name):
        if Path(name).is_file():
            return Path(name)
        raise NotFoundError(f"No recipe at '{name}'")
    known = recipes()
    if name not in known:
        hint = suggest(name, known, "Recipes: ")
        raise NotFoundError(
            f"No recipe named '{name}' is installed. {hint} A file is named with its ending, .yaml"
        )
    return known[name].file


def config_source(name: str) -> Path | dict[str, str]:
    """What `load_config` takes, of what people type: a YAML file, or the name of a recipe.

    Raises:
        NotFoundError: no such recipe, with near names.
    """
    if is_file(name):
        return Path(name)
    find_recipe(name)
    return {"recipe": name}


def is_file(name: Any) -> bool:
    """Whether a recipe is named as a file, not as one that is shipped."""
    return isinstance(name, str) and name.endswith(SUFFIXES)


def _beside(value: str) -> list[Path]:
    """Folders of the module of an entry point ("package.hooks"); none where it is not found."""
    top, *inner = value.partition(":")[0].split(".")[:-1] or [""]
    try:
        spec = importlib.util.find_spec(top) if top else None
    except (ImportError, ValueError):
        spec = None
    places = (spec and spec.submodule_search_locations) or ()
    return [Path(place).joinpath(*inner) for place in places]


def _comment(file: Path) -> tuple[str, str]:
    """Summary and source."""
    lines = file.read_text(encoding="utf-8").splitlines()
    told = [line.lstrip("# ") for line in itertools.takewhile(lambda x: x.startswith("#"), lines)]
    text = " ".join(told)
    address = re.search(r"https?://[^\s,;)]+", text)
    none = "no paper" if "no paper" in text.lower() else ""
    return (told[0].rstrip() if told else ""), (address[0].rstrip(".:") if address else none)
