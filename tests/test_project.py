"""Rules that hold for the project as a whole; CONTRIBUTING.md and ARCHITECTURE.md say why."""

import ast
import functools
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from wsizoo import errors, hookspecs
from wsizoo.registry import read_file

ROOT = Path(__file__).parent.parent
CORE = ROOT / "wsizoo"
CORE_FILES = sorted(f for f in CORE.rglob("*.py") if "template" not in f.parts)
PLUGIN_FILES = sorted(ROOT.glob("plugins/*/src/**/*.py"))
HOOK_FILES = [f for f in PLUGIN_FILES if f.name == "hooks.py"]
FILES = [*CORE_FILES, *PLUGIN_FILES, *sorted(ROOT.glob("examples/*.py"))]

# A file imports only from its own layer or from those above it. ARCHITECTURE.md shows this table.
LAYERS = """
errors hookspecs files names tables targets yaml_data prediction_files
fingerprint structured spec encoder_spec overrides plugins registry bag patient catalogue builtin
outputs bag_checks interfaces losses objectives augment ops mamba hub weights checkpoints seeding
pins stored mil selection model weight_formats encoders slides formats viz
zoo card publish conversion extraction segmentation sources inference doctor scaffold
measures splits reports
train benchmark diagnosis
cli testing demo __main__
""".strip().splitlines()
LAYER_OF = {module: layer for layer, line in enumerate(LAYERS) for module in line.split()}
LIGHT = {"bag", "patient"}  # of layers 0 and 1, the two that may import torch
READ_IN_ONE_SITTING = "errors hookspecs plugins spec registry bag interfaces model zoo weights"
HEAVY = ("torch", "numpy", "scipy", "h5py", "omegaconf", "huggingface_hub", "openslide", "PIL")
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_THE_PATH = 349, 39, 1999


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    """`wsizoo/slides/tiff.py` -> `slides`."""
    return path.relative_to(CORE).parts[0].removesuffix(".py")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, inside functions too."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{label(path)}:{node.lineno}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (
                (node.lineno, n if node.module == "wsizoo" else node.module or "") for n in names
            )


def importers(package: str, files: list[Path]) -> set[str]:
    return {
        label(path)
        for path in files
        for _, name in imports(path)
        if name == package or name.startswith(package + ".")
    }


def test_every_module_has_a_layer() -> None:
    assert {module_of(f) for f in CORE_FILES} - {"__init__"} == set(LAYER_OF)


@pytest.mark.parametrize("path", [f for f in CORE_FILES if f != CORE / "__init__.py"], ids=label)
def test_imports_point_one_way(path: Path) -> None:
    own = LAYER_OF[module_of(path)]
    for line, name in imports(path):
        package, _, rest = name.partition(".")
        if package == "wsizoo" and rest and not rest.startswith("__"):
            wanted = rest.partition(".")[0]
            layer = LAYER_OF.get(wanted)
            assert layer is not None, f"{label(path)}:{line} imports a public name of wsizoo"
            assert layer <= own, f"{label(path)}:{line} (layer {own}) imports {wanted} ({layer})"


def test_the_architecture_shows_the_same_layers() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| (\d) \| ([a-z_ ]+) \|", text, re.MULTILINE))
    layers = [[name for name in line.split() if name != "__main__"] for line in LAYERS]
    assert [shown[str(i)].split() for i in range(len(LAYERS))] == layers


def test_the_core_imports_no_plugin() -> None:
    assert importers("wsizoo_plugin_example", CORE_FILES) == set()
    found = [n for f in CORE_FILES for _, n in imports(f) if n.startswith("wsizoo_plugin")]
    assert found == []


def test_only_structured_imports_omegaconf() -> None:
    assert importers("omegaconf", CORE_FILES) == {"wsizoo/structured.py"}


def test_only_hub_talks_to_the_hub() -> None:
    public = [f for f in CORE_FILES if module_of(f) != "testing"]
    asks_for_settings = {"wsizoo/doctor.py"}
    assert importers("huggingface_hub", public) == {"wsizoo/hub.py"} | asks_for_settings


def test_the_first_layers_do_not_import_torch() -> None:
    light = [f for f in CORE_FILES if LAYER_OF.get(module_of(f), 0) < 2]
    assert {Path(name).stem for name in importers("torch", light)} <= LIGHT


def test_mil_does_not_know_that_registries_exist() -> None:
    mil = [f for f in CORE_FILES if module_of(f) == "mil"]
    assert importers("wsizoo.registry", mil) | importers("wsizoo.plugins", mil) == set()


def test_the_loop_knows_no_method_by_name() -> None:
    train = [f for f in CORE_FILES if module_of(f) == "train"]
    found = {n for f in train for _, n in imports(f) if n.startswith("wsizoo.mil")}
    assert found == set()


CLI = "import sys, wsizoo.cli; sys.argv = {!r}; wsizoo.cli.main()"
PROGRAMS = {
    "import wsizoo": "import wsizoo",
    "dir(wsizoo)": "import wsizoo; dir(wsizoo)",
    "list_models": "import wsizoo; assert 'abmil-uni' in wsizoo.list_models()",
    **{
        " ".join(line): CLI.format(line)
        for line in (
            ["wsizoo", "list"],
            ["wsizoo", "list", "a*", "--json"],
            ["wsizoo", "list", "--encoders"],
            ["wsizoo", "plugins"],
            ["wsizoo", "--help"],
        )
    },
    **{label(f): f"import runpy, wsizoo.hookspecs; runpy.run_path({str(f)!r})" for f in HOOK_FILES},
}
WATCHED = """
import json, sys
reached = []
sys.addaudithook(lambda event, args: event.startswith("socket.") and reached.append(event))
try:
    exec({program!r})
except SystemExit as ended:
    assert not ended.code, ended.code
print()
print(json.dumps([[m for m in {heavy!r} if m in sys.modules], reached]))
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_it_is_light_and_opens_no_socket(program: str) -> None:
    code = WATCHED.format(program=PROGRAMS[program], heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], []]


def test_importing_everything_public_opens_no_socket() -> None:
    program = "import wsizoo\nfor name in wsizoo.__all__: getattr(wsizoo, name)"
    code = WATCHED.format(program=program, heavy=())
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[], []]


def test_public_names_are_declared_once_for_readers_and_type_checkers() -> None:
    import wsizoo

    checked = {
        alias.name
        for node in tree(CORE / "__init__.py").body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert set(wsizoo.__all__) == {*wsizoo._PUBLIC, "__version__"} == {*checked, "__version__"}
    with pytest.raises(AttributeError, match="module 'wsizoo' has no attribute 'lode'"):
        wsizoo.lode  # noqa: B018


def test_the_path_from_registry_to_model_is_read_in_one_sitting() -> None:
    lines = {
        name: len((CORE / f"{name}.py").read_text(encoding="utf-8").splitlines())
        for name in READ_IN_ONE_SITTING.split()
    }
    assert sum(lines.values()) <= MOST_LINES_OF_THE_PATH, lines


@pytest.mark.parametrize("path", FILES, ids=label)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8").splitlines()
    assert len(text) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = set(range(node.lineno, (node.end_lineno or 0) + 1))
            if ast.get_docstring(node) is not None:
                told = node.body[0]
                lines -= set(range(told.lineno, (told.end_lineno or 0) + 1))
            code = [n for n in lines if text[n - 1].strip()]
            assert len(code) <= MOST_LINES_OF_A_FUNCTION, f"{node.name}: {len(code)} lines"


def test_nothing_is_a_drawer() -> None:
    assert [label(f) for f in FILES if f.stem in ("utils", "common", "helpers", "misc")] == []


def test_only_the_command_line_prints() -> None:
    prints = [
        f"{label(path)}:{node.lineno}"
        for path in [*CORE_FILES, *PLUGIN_FILES]
        if "cli" not in path.parts
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
    ]
    assert prints == []


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    manual = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    for name in (n for n in vars(hookspecs) if n.startswith("wsizoo_")):
        hook = getattr(hookspecs, name)
        signature = str(inspect.signature(hook)).replace("'", "")
        assert f"## `{name}{signature}`\n" in manual


def test_the_fields_of_hook_data_are_documented() -> None:
    manual = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    for kind in (hookspecs.Component, hookspecs.OpBackend, hookspecs.WeightFormat):
        for field in kind.__dataclass_fields__:
            assert f"| `{field}` |" in manual, (kind, field)


def test_every_error_is_raised_somewhere() -> None:
    made = {
        getattr(node.func, "id", "")
        for path in CORE_FILES
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call)
    }
    kinds = {
        name
        for name, value in vars(errors).items()
        if inspect.isclass(value) and value is not errors.WsizooError
    }
    assert kinds - made == set()


def test_nothing_is_built_in_by_a_branch_name() -> None:
    """Weights and digests that are stated are stated in full."""
    content = read_file(ROOT / "registry.yaml")
    assert loose_pins(content) == []
    model, encoder = content["models"]["abmil-uni"], content["encoders"]["uni"]
    model["weights"] = {"repo": "lab/model", "revision": "main", "sha256": "f" * 64}
    encoder["sha256"] = "latest"
    assert loose_pins(content) == ["abmil-uni revision main", "uni sha256 latest"]


def loose_pins(content: dict[str, Any]) -> list[str]:
    """Revisions and digests of a registry file that are stated, but not in full."""
    lengths = {"revision": 40, "sha256": 64}
    holders = [(name, record.get("weights") or {}) for name, record in content["models"].items()]
    holders += content["encoders"].items()
    return [
        f"{name} {field} {holder[field]}"
        for name, holder in holders
        for field, length in lengths.items()
        if holder.get(field) and not re.fullmatch(rf"[0-9a-f]{{{length}}}", str(holder[field]))
    ]
