"""What a config says in all: its file, the recipe under it, `key=value` texts over it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from wsizoo.errors import NotFoundError, SpecError
from wsizoo.overrides import cannot_read
from wsizoo.train.recipes import find_recipe, is_file
from wsizoo.yaml_data import read_value, read_yaml

PATHS = ("data.table", "data.features", "data.instances", "split.file")
Source = Path | str | Mapping[str, Any]  # a YAML file, or its content


def read_whole(
    source: Source,
    overrides: Sequence[str] = (),
    says_all: Callable[[Mapping[str, Any]], bool] = lambda content: False,
) -> tuple[str, dict[str, Any]]:
    """Whose it is, and the content on its recipe, under its overrides, unchecked.

    Args:
        says_all: whether a content states every key: then it stands on nothing.
    """
    if isinstance(source, Mapping):
        whose, content = "the config", dict(source)
        _anchor(content, Path.cwd())
    else:
        whose, content = f"config '{source}'", read_content(Path(source))
    over: dict[str, Any] = {}
    for text in overrides:
        over = lay_on(over, _read_override(whose, text))
    _anchor(over, Path.cwd())
    whole = lay_on(content, over)
    return whose, whole if says_all(content) else _on_recipe(whose, whole)


def lay_on(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`merge`, but what the model of a run is changed by adds up, each text at its last place."""
    merged, (below, above) = merge(under, over), (each.get("overrides") for each in (under, over))
    if isinstance(below, list) and isinstance(above, list):
        merged["overrides"] = [text for text in below if text not in above] + above
    return merged


def merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` laid on `under`, mapping by mapping; lists and null replace what was there."""
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(below, value) if both else value  # type: ignore[arg-type]
    return merged


def _on_recipe(whose: str, content: dict[str, Any], above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The content laid on its recipe, and that on its own."""
    name = content.get("recipe")
    if name is None:
        return content
    file = find_recipe(str(name))
    if file in above:
        raise SpecError(f"{whose}: the recipe '{name}' starts from itself")
    return lay_on(_on_recipe(f"recipe '{name}'", read_content(file), (*above, file)), content)


def read_content(path: Path) -> dict[str, Any]:
    """A file's content, its paths made absolute."""
    try:
        content = read_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"No config at '{path}'") from error
    except (OSError, ValueError) as error:
        raise SpecError(f"config '{path}' cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise SpecError(f"config '{path}' holds {content!r}, expected keys such as model and data")
    _anchor(content, path.absolute().parent)
    return content


def _anchor(content: dict[str, Any], folder: Path) -> None:
    """Make relative paths absolute, in place."""
    if is_file(content.get("recipe")):
        content["recipe"] = str(folder / content["recipe"])
    for name in PATHS:
        group, key = name.split(".")
        inside = content.get(group)
        if isinstance(inside, dict) and isinstance(inside.get(key), str):
            content[group] = {**inside, key: str(folder / inside[key])}


def _read_override(whose: str, text: str) -> dict[str, Any]:
    """`a.b=VALUE` as {a: {b: VALUE}}."""
    key, equals, raw = text.partition("=")
    if not equals:
        raise SpecError(
            f"{whose}: cannot read the override '{text}', expected KEY=VALUE, for instance "
            "optimiser.lr=1e-3"
        )
    *path, last = key.split(".")
    try:
        value = read_value(last, raw)
    except ValueError as error:
        raise SpecError(f"{whose}: {cannot_read(text, raw, error)}") from error
    content = {last: value}
    for step in reversed(path):
        content = {step: content}
    return content
