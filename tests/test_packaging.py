"""What `make dist` built, installed in a fresh environment and used as a stranger would.

Run by `make test`; needs the package index for the dependencies.
"""

import os
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DIST = ROOT / "dist"
pytestmark = pytest.mark.packaging


class Fresh:
    """A fresh virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder, with_pip=True)

    def run(self, *command: str | Path, ok: bool = True, cwd: Path | None = None) -> str:
        """Run a program of the environment; its output, both streams."""
        program = self.folder / ("Scripts" if os.name == "nt" else "bin") / command[0]
        hidden = ("PYTHONPATH", "WSIZOO_PLUGINS", "PYTEST_ADDOPTS")
        done = subprocess.run(
            [program, *command[1:]],
            cwd=cwd or self.folder,
            env={key: value for key, value in os.environ.items() if key not in hidden},
            capture_output=True,
            text=True,
            check=False,
        )
        output = done.stdout + done.stderr
        assert (done.returncode == 0) == ok, f"{command} gave {done.returncode}:\n{output}"
        return output

    def pip(self, *packages: str | Path) -> None:
        options = ["--quiet", "--find-links", DIST, "-c", ROOT / "constraints.txt"]
        self.run("python", "-m", "pip", "install", *options, *packages)

    def python(self, code: str, ok: bool = True) -> str:
        return self.run("python", "-W", "error", "-c", code, ok=ok)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Fresh:
    assert list(DIST.glob("wsizoo-*.whl")), "nothing built yet: make dist"
    environment = Fresh(tmp_path_factory.mktemp("fresh") / "venv")
    environment.pip("wsizoo")
    return environment


def test_the_wheel_is_what_runs_and_brings_registry_weights_and_template(fresh: Fresh) -> None:
    where = fresh.python("import wsizoo; print(wsizoo.__file__)")
    assert str(fresh.folder) in where
    assert "abmil-demo" in fresh.run("wsizoo", "list")
    assert "ok" in fresh.run("wsizoo", "verify", "abmil-demo")


def test_a_named_model_loads_or_says_what_to_type(fresh: Fresh) -> None:
    fresh.python("import wsizoo; wsizoo.load('abmil-demo')")
    output = fresh.python("import wsizoo; wsizoo.load('span-mil-uni')", ok=False)
    assert "No weights have been released for 'span-mil-uni'" in output
    assert "wsizoo.build('span-mil-uni', " in output


def test_a_model_of_a_plugin_that_is_not_installed_names_the_pip_command(fresh: Fresh) -> None:
    output = fresh.python("import wsizoo; wsizoo.build('pixel-mamba-6m')", ok=False)
    assert "pip install wsizoo-plugin-pixelmamba" in output


def test_a_plugin_of_somebody_else_is_in_the_zoo_once_installed(fresh: Fresh) -> None:
    assert "example-uni" not in fresh.run("wsizoo", "list")
    fresh.pip("wsizoo-plugin-example")
    assert "example-uni" in fresh.run("wsizoo", "list")
    fresh.python("import wsizoo; wsizoo.build('example-uni')")


def test_a_rendered_plugin_installs_passes_its_tests_and_builds_by_name(
    fresh: Fresh, tmp_path: Path
) -> None:
    fresh.run("wsizoo", "new", "plugin", "my-method", cwd=tmp_path)
    folder = tmp_path / "wsizoo-plugin-my-method"
    fresh.pip(folder, "pytest")
    assert "passed" in fresh.run("python", "-m", "pytest", "-q", folder)
    assert "checks passed" in fresh.run("wsizoo", "check", "wsizoo-plugin-my-method")
    fresh.python("import wsizoo; wsizoo.build('my-method-uni')")


def test_a_slide_is_predicted_at_once_after_installing(fresh: Fresh, tmp_path: Path) -> None:
    write = (
        "import sys; from wsizoo.demo.cohort import draw; "
        "from wsizoo.slides.tiff import write_pyramid; "
        "write_pyramid(sys.argv[1], draw(1).image, 0.5)"
    )
    fresh.run("python", "-c", write, tmp_path / "demo-01.svs")
    fresh.run(
        "wsizoo", "predict", tmp_path / "demo-01.svs", "-m", "abmil-demo", "-o", tmp_path / "out"
    )
    table = (tmp_path / "out" / "predictions.csv").read_text()
    assert table.startswith("slide,prob_normal,prob_tumour,predicted\ndemo-01,")
    assert (tmp_path / "out" / "heatmaps" / "demo-01.png").stat().st_size > 10_000
