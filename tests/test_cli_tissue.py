"""wsizoo tissue: what is typed, what is printed, and the exit code."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from wsizoo.cli import cli
from wsizoo.slides.tiff import write_pyramid


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["tissue", *map(str, arguments)], prog_name="wsizoo")


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for name, colour in (("A1", (185, 105, 160)), ("B2", (60, 140, 90))):
        pixels = np.full((960, 1280, 3), 243, np.uint8)
        pixels[160:800, 320:960] = colour
        write_pyramid(folder / f"{name}.svs", pixels, 0.5, (1, 4))
    return folder


def test_a_line_a_slide_tells_its_tissue(slides: Path, tmp_path: Path) -> None:
    result = invoke(slides, "-o", tmp_path)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()
    assert re.fullmatch(r"done     A1  3\d\.\d % tissue  0\.1 mm2  \d\.\d s", first)
    assert second.startswith("done     B2  0.0 % tissue")
    assert f"2 of 2 slides done: {tmp_path}" in result.stderr
    assert {f.name for f in tmp_path.iterdir()} == {
        f"{name}.{kind}" for name in ("A1", "B2") for kind in ("geojson", "png")
    }
    again = invoke(slides, "-o", tmp_path)
    assert again.stdout.splitlines() == ["present  A1", "present  B2"]


def test_pen_is_kept_and_files_are_replaced_on_request(slides: Path, tmp_path: Path) -> None:
    invoke(slides / "B2.svs", "-o", tmp_path)
    result = invoke(slides / "B2.svs", "-o", tmp_path, "--keep-pen", "--overwrite")
    assert re.match(r"done     B2  3\d\.\d % tissue", result.stdout)


def test_json_is_one_line_a_slide(slides: Path, tmp_path: Path) -> None:
    result = invoke(slides / "A1.svs", "-o", tmp_path, "--json", "--mpp", "1")
    told = json.loads(result.stdout)
    assert told["state"] == "done"
    assert told["file"] == str(tmp_path / "A1.geojson")
    assert told["area"] == pytest.approx(0.41, abs=0.03)
    assert result.stderr == ""


def test_a_slide_that_fails_is_told_and_the_exit_code_is_1(slides: Path, tmp_path: Path) -> None:
    (tmp_path / "C3.svs").write_text("no slide")
    result = invoke(tmp_path / "C3.svs", slides / "A1.svs", "-o", tmp_path / "out")
    assert result.exit_code == 1
    failed, done = result.stdout.splitlines()
    assert failed.startswith(f"FAILED   C3: {tmp_path / 'C3.svs'} is in no format")
    assert done.startswith("done     A1")
    assert "1 of 2 slides done" in result.stderr
