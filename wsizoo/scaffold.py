"""`wsizoo new plugin NAME`: the tutorial plugin under another name."""

from __future__ import annotations

import re
from pathlib import Path

from wsizoo.errors import DataError
from wsizoo.files import replacing_folder
from wsizoo.registry import default

TEXT = frozenset((".py", ".toml", ".yaml", ".md"))
TUTORIAL = re.compile(r"\s+It is\s+the tutorial plugin;.*?under another name\.", re.DOTALL)
LEFT_OUT = frozenset(("__pycache__", ".pytest_cache", ".mypy_cache", "dist", "build"))


def new_plugin(name: str, out: Path | str = ".") -> Path:
    """Write `out/wsizoo-plugin-NAME`, a working plugin.

    Raises:
        DataError: not a name, a name that is taken, or the folder exists.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise DataError(f"'{name}' is no plugin name, expected lower-case words: my-method")
    registry = default()
    if any(c.name == name for c in registry.plugins.components("aggregator")):
        raise DataError(f"There is an aggregator '{name}' already; choose another name")
    if f"{name}-uni" in registry.models:
        raise DataError(f"There is a model '{name}-uni' already; choose another name")
    folder = Path(out) / f"wsizoo-plugin-{name}"
    if folder.exists():
        raise DataError(f"'{folder}' exists; choose another name, or delete it")
    source = template_folder()
    with replacing_folder(folder) as temporary:
        for file in sorted(source.rglob("*")):
            relative = file.relative_to(source)
            if file.is_dir() or LEFT_OUT & set(relative.parts) or "egg-info" in str(relative):
                continue
            target = temporary / _renamed(str(relative), name)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in TEXT:
                target.write_text(
                    _renamed(file.read_text(encoding="utf-8"), name), encoding="utf-8"
                )
            else:
                target.write_bytes(file.read_bytes())
    return folder


def template_folder() -> Path:
    """The tutorial plugin: inside the wheel, else in the checkout."""
    package = Path(__file__).parent
    inside = package / "template"
    return inside if inside.is_dir() else package.parent / "plugins" / "wsizoo-plugin-example"


def _renamed(text: str, name: str) -> str:
    """The example's names in their four spellings."""
    module = name.replace("-", "_")
    camel = "".join(word.capitalize() for word in name.split("-"))
    for old, new in (
        ("wsizoo-plugin-example", f"wsizoo-plugin-{name}"),
        ("wsizoo_plugin_example", f"wsizoo_plugin_{module}"),
        ("test_example", f"test_{module}"),
        ("ExamplePooling", f"{camel}Pooling"),
        ("example-uni", f"{name}-uni"),
        ('"example"', f'"{name}"'),
        ("name: example", f"name: {name}"),
        ("\nexample = ", f"\n{name} = "),  # the entry point
    ):
        text = text.replace(old, new)
    return TUTORIAL.sub("", text)
