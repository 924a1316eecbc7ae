"""The words are true: snippets run, links lead somewhere, and nothing that exists is left out."""

import ast
import dataclasses
import functools
import inspect
import re
import shlex
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch

import wsizoo
import wsizoo.testing
from wsizoo import encoder_spec, errors, hookspecs, spec
from wsizoo.cli import COMMANDS, cli, joined
from wsizoo.encoders.loading import build_encoder
from wsizoo.encoders.networks import NetworkEncoder
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.inspection import Inspection
from wsizoo.interfaces import Encoder, Head, Part, Selector, WholeModel
from wsizoo.plugins import discover
from wsizoo.registry import Entry, Registry
from wsizoo.slides.tiff import write_pyramid
from wsizoo.testing import check_component
from wsizoo.yaml_data import read_yaml

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "ARCHITECTURE", "CONTRIBUTING", "CHANGELOG")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]
NOT_RUN = "<!-- not run: "
WITH_PYTHON = [page for page in PAGES if "```python" in page.read_text(encoding="utf-8")]


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block; line is that of its first line, above the line over its fence."""

    language: str
    text: str
    line: int
    above: str


def blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    start: int | None = None
    for i, line in enumerate(lines):
        if line.startswith("```") and start is None:
            start = i
        elif line.startswith("```") and start is not None:
            text = "\n".join(lines[start + 1 : i]) + "\n"
            above = lines[start - 1] if start else ""
            yield Block(lines[start].removeprefix("```"), text, start + 2, above)
            start = None
    assert start is None, f"{page}: a block that begins in line {start} does not end"


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the snippets find in their folder: slide.svs, and features/s0.h5 to s3.h5 of uni."""
    folder = tmp_path_factory.mktemp("samples")
    rng = np.random.default_rng(0)
    tissue = np.array([190, 120, 180]) + rng.normal(0, 25, (672, 672, 3))
    image = np.full((1120, 1120, 3), 245, np.uint8)
    image[200:872, 200:872] = tissue.clip(0, 255).astype(np.uint8)
    write_pyramid(folder / "slide.svs", image, mpp=0.5)
    for i in range(4):
        cells = torch.stack([torch.arange(12) % 4, torch.arange(12) // 4], 1)
        features = torch.randn(12, 1024, generator=torch.Generator().manual_seed(i))
        made = Fingerprint(encoder="uni", mpp=0.5)
        bag = wsizoo.Bag(features, cells * 256, spacing=256.0, encoder=made, slide_id=f"s{i}")
        wsizoo.write_bag(bag, folder / "features" / f"s{i}.h5")
    return folder


@functools.cache
def run_page(page: Path) -> dict[str, Any]:
    """Names after the Python blocks of a page ran one after the other, as one module; once."""
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}")
    module.__dict__["__file__"] = str(page)
    for block in blocks(page):
        if block.language == "python" and not block.above.startswith(NOT_RUN):
            # Blank lines in front, so that a traceback names the line of the page.
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, module.__dict__)
    return module.__dict__


@pytest.mark.parametrize("page", WITH_PYTHON, ids=page_id)
def test_the_snippets_of_a_page_run(
    page: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slide.svs").symlink_to(samples / "slide.svs")
    (tmp_path / "features").symlink_to(samples / "features")
    monkeypatch.chdir(tmp_path)
    run_page(page)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_a_snippet_that_is_not_run_says_why(page: Path) -> None:
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("<!--"):
            assert re.fullmatch(r"<!-- not run: \S.* -->", line), line


def test_every_part_of_the_tutorial_conforms() -> None:
    names = run_page(ROOT / "docs" / "writing-a-plugin.md")
    parts = [v for v in names.values() if isinstance(v, type) and issubclass(v, Part)]
    parts = [part for part in parts if not issubclass(part, NetworkEncoder)]
    assert len(parts) >= 8
    for part in parts:
        kinds = {
            Selector: "selector",
            Encoder: "encoder",
            Head: "head",
            WholeModel: "model",
        }
        kind = next((k for base, k in kinds.items() if issubclass(part, base)), "aggregator")
        failed = [f"{r.check}: {r.reason}" for r in check_component(part, kind) if not r.passed]
        assert failed == [], part.__name__


def test_the_networks_of_the_tutorial_are_built_from_their_entries() -> None:
    page = ROOT / "docs" / "writing-a-plugin.md"
    (text,) = (b.text for b in blocks(page) if b.language == "yaml" and "mylab-vits" in b.text)
    ((name, record),) = read_yaml(text)["encoders"].items()
    registry = Registry(discover([], allow=""), encoders={name: Entry(name, record, "a test")})
    patches = torch.zeros(2, 3, 256, 256, dtype=torch.uint8)
    assert build_encoder(name, registry=registry, depth=1)(patches).shape == (2, record["dim"])
    facts = encoder_spec.encoder_spec(name, {**record, "params": {}, "pooling": "mean"})
    stem = run_page(page)["Stem"]("stem", facts)
    stem.draw(0)
    assert stem(patches).shape == (2, 384)


def test_the_tutorial_plugin_is_as_short_as_the_readme_says() -> None:
    sources = (ROOT / "plugins" / "wsizoo-plugin-example" / "src").rglob("*.py")
    lines = [line for s in sources for line in s.read_text("utf-8").splitlines() if line.strip()]
    assert len(lines) <= 25
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"announce it: {len(lines)} in the tutorial plugin" in readme


def test_the_backend_of_the_tutorial_computes_what_the_reference_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = run_page(ROOT / "docs" / "writing-a-plugin.md")
    inputs = run_page(ROOT / "docs" / "testing.md")["inputs"]
    module = types.ModuleType("tutorial_ops")
    module.__dict__.update(softmax=names["softmax"], why_not=names["why_not"])
    monkeypatch.setitem(sys.modules, "tutorial_ops", module)
    reference = wsizoo.ops.segment_softmax.reference
    target, why_not = "tutorial_ops:softmax", "tutorial_ops:why_not"
    backend = wsizoo.OpBackend("segment_softmax", "mine", target, why_not)
    op = wsizoo.ops.Op(reference, [backend])
    wsizoo.testing.check_op_backend(op, "mine", inputs(1), inputs(7), inputs(1000))


def test_the_hub_test_on_the_page_about_testing_passes(
    hub: wsizoo.testing.HubDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_page(ROOT / "docs" / "testing.md")["test_what_is_pushed_loads"](hub, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_relative_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = [t.partition("#")[0] for t in re.findall(r"\]\(([^)\s]+)\)", text)]
    for target in targets:
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"({page.name})" in index


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_commands_and_options_on_a_page_exist(page: Path) -> None:
    bash = [b.text.replace("\\\n", " ") for b in blocks(page) if b.language == "bash"]
    shell = [line for text in bash for line in text.splitlines()]
    inline = re.findall(r"`(wsizoo [^`]+)`", page.read_text(encoding="utf-8"))
    for line in [*shell, *inline]:
        words = shlex.split(line, comments=True)
        if words[:1] == ["wsizoo"] and words[1:] and words[1].islower():
            assert_command_exists(words[1:], line)


def assert_command_exists(words: list[str], line: str) -> None:
    command: click.Command = cli
    context = click.Context(cli)
    words = joined(words)
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"there is no command '{name}': {line}"
        command = found
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    options = [word for word in words if re.match(r"--?[a-z]", word)]
    assert set(options) <= known, f"unknown options: {line}"


def test_every_command_has_a_heading_and_an_example() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for name in COMMANDS:
        assert f"\n## {name}\n\n```bash\nwsizoo {name}" in text


def test_every_hook_is_documented_with_its_exact_signature() -> None:
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    hooks = [n for n in vars(hookspecs) if n.startswith("wsizoo_")]
    assert hooks
    for name in hooks:
        signature = str(inspect.signature(getattr(hookspecs, name))).replace("'", "")
        assert f"\n## `{name}{signature}`\n" in text


@pytest.mark.parametrize(
    ("page", "structure"),
    [
        ("hooks", hookspecs.Component),
        ("hooks", hookspecs.OpBackend),
        ("hooks", hookspecs.WeightFormat),
        ("registry", spec.ModelSpec),
        ("registry", spec.EncoderUse),
        ("registry", spec.WeightsSpec),
        ("registry", spec.ReportedResult),
        ("registry", encoder_spec.EncoderSpec),
        ("registry", encoder_spec.ImageSpec),
        ("registry", encoder_spec.KeysSpec),
        ("features", Fingerprint),
        ("features", Inspection),
    ],
)
def test_every_field_is_documented(page: str, structure: Any) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(structure):
        assert f"`{field.name}`" in text, f"{page}.md says nothing of {field.name}"


def test_every_error_about_weights_says_what_to_do() -> None:
    text = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    kinds = [v for v in vars(errors).values() if inspect.isclass(v)]
    for kind in kinds:
        if issubclass(kind, errors.WeightsError):
            assert f"\n| `{kind.__name__}` | " in text


def test_every_public_name_of_the_test_kit_is_documented() -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    for name in set(wsizoo.testing.__all__) - {"Case", "Check", "PluginReport", "Result"}:
        assert re.search(rf"\b{name}\b", text), f"testing.md says nothing of {name}"


def layers() -> dict[str, int]:
    """Module (or folder) of wsizoo -> its layer, from the table of ARCHITECTURE.md."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([\w ]+) \|", text, re.M)
    return {name: int(layer) for layer, names in rows for name in names.split()}


def test_the_table_of_layers_names_every_module() -> None:
    package = ROOT / "wsizoo"
    there = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert set(layers()) == {name for name in there if not name.startswith("__")}


def test_imports_point_one_way() -> None:
    rank, wrong = layers(), []
    for file in (ROOT / "wsizoo").rglob("*.py"):
        own = file.relative_to(ROOT / "wsizoo").parts[0].removesuffix(".py")
        if own in rank:
            tree = ast.parse(file.read_text(encoding="utf-8"))
            used = {name for node in ast.walk(tree) for name in imported(node)} & set(rank)
            wrong += [f"{file.name} imports {name}" for name in used if rank[name] > rank[own]]
    assert wrong == []


def imported(node: ast.AST) -> Iterator[str]:
    """Modules of wsizoo, by their first name, that an import statement names."""
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        return
    yield from (name.split(".")[1] for name in names if name.startswith("wsizoo."))
