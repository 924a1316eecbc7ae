"""wsizoo.scaffold: `wsizoo new plugin NAME` writes a working plugin without the tutorial's name."""

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

import wsizoo
from wsizoo.errors import DataError
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.scaffold import new_plugin, template_folder

NAME = "my-method"


def texts(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): file.read_text(encoding="utf-8")
        for file in folder.rglob("*")
        if file.suffix in {".py", ".md", ".toml", ".yaml"}
    }


def test_the_new_plugin_has_the_files_of_the_tutorial_under_its_own_name(tmp_path: Path) -> None:
    folder = new_plugin(NAME, tmp_path)
    assert folder == tmp_path / "wsizoo-plugin-my-method"
    names = {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}
    assert {
        "pyproject.toml",
        "README.md",
        "src/wsizoo_plugin_my_method/hooks.py",
        "src/wsizoo_plugin_my_method/model.py",
        "src/wsizoo_plugin_my_method/registry.yaml",
        "tests/test_my_method.py",
        "tests/golden.safetensors",
    } <= names
    assert [p.name for p in tmp_path.iterdir()] == ["wsizoo-plugin-my-method"]


def test_nothing_of_the_tutorials_name_is_left(tmp_path: Path) -> None:
    for name, text in texts(new_plugin(NAME, tmp_path)).items():
        assert "example" not in (name + text).lower(), name
        assert "tutorial" not in text, name


def test_the_new_plugin_is_found_and_its_model_builds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = new_plugin("scaffolded", tmp_path)
    monkeypatch.syspath_prepend(folder / "src")
    point = EntryPoint("scaffolded", "wsizoo_plugin_scaffolded.hooks", "wsizoo")
    registry = Registry.of(discover(entry_points=[point]))
    assert not any(plugin.reason for plugin in registry.plugins.all)
    model = wsizoo.build("scaffolded-uni", registry=registry)
    assert type(model.aggregator).__name__ == "ScaffoldedPooling"
    with torch.no_grad():
        output = model(wsizoo.Bag(torch.randn(5, 1024)))
    assert output.logits is not None
    assert output.logits.shape == (2,)


def test_the_entry_point_has_the_plugins_name(tmp_path: Path) -> None:
    text = (new_plugin(NAME, tmp_path) / "pyproject.toml").read_text()
    assert '[project.entry-points.wsizoo]\nmy-method = "wsizoo_plugin_my_method.hooks"' in text


@pytest.mark.parametrize(
    "name", ["", "My-Method", "my_method", "-a", "a-", "a--b", "3d", "a b", "../a", "méthode"]
)
def test_a_name_that_cannot_be_a_package_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="is no plugin name, expected lower-case words: my-method"):
        new_plugin(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_taken_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is an aggregator 'abmil' already"):
        new_plugin("abmil", tmp_path)
    with pytest.raises(DataError, match="There is a model 'abmil-surv-uni' already"):
        new_plugin("abmil-surv", tmp_path)


def test_a_folder_that_exists_is_never_touched(tmp_path: Path) -> None:
    mine = tmp_path / "wsizoo-plugin-my-method" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("work")
    with pytest.raises(DataError, match="exists; choose another name, or delete it"):
        new_plugin(NAME, tmp_path)
    assert mine.read_text() == "work"


def test_a_template_is_there_and_its_leftovers_are_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "template"
    for name in ("src/__pycache__/a.py", "x.egg-info/b.py", "dist/c.py", "tests/keep.py"):
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text("")
    assert template_folder().is_dir()
    monkeypatch.setattr("wsizoo.scaffold.template_folder", lambda: source)
    folder = new_plugin(NAME, tmp_path / "out")
    assert [f.name for f in folder.rglob("*.py")] == ["keep.py"]


@pytest.mark.slow
def test_the_new_plugin_passes_its_own_tests(tmp_path: Path) -> None:
    folder = new_plugin(NAME, tmp_path)
    path = os.pathsep.join([str(Path(wsizoo.__file__).parents[1]), str(folder / "src")])
    env = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-m", "pytest", "-q", "-k", "not by_name", "tests"]
    subprocess.run(command, check=True, cwd=folder, env=env)
