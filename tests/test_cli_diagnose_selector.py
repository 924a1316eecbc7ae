"""wsizoo diagnose selector: what is typed, what is told, and how it ends."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.soft_selectors import registry, write_needles
from tests.test_diagnosis_selector import train
from wsizoo.cli import cli, main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("needles")
    write_needles(folder)
    return train(folder, epochs=2)


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy plugin, as if it were."""
    monkeypatch.setattr("wsizoo.diagnosis.selector.default", registry)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def invoke(*arguments: str | Path | int) -> Result:
    quick = ("--probe-slides", 0, "--maps", 0)
    given = map(str, ("diagnose", "selector", *quick, *arguments))
    return CliRunner().invoke(cli, list(given), prog_name="wsizoo")


def test_a_table_and_a_verdict_are_printed_and_lie_in_the_run(run: Path) -> None:
    result = invoke(run)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["run", "what", "measure", "value", "95", "%", "interval", "sd"]
    assert any(line.startswith("run  hard - soft") for line in lines)
    assert any(line.startswith("run: ") and "Hard minus soft is" in line for line in lines)
    assert f"Open {run / 'diagnosis' / 'selector.html'}" in result.stderr
    assert f"wsizoo report {run}" in result.stderr
    assert (run / "diagnosis" / "selector.csv").is_file()
    report = CliRunner().invoke(cli, ["report", str(run)], prog_name="wsizoo")
    assert report.exit_code == 0
    assert "Selector: soft to hard" in (run / "report.html").read_text(encoding="utf-8")


def test_json_is_what_the_file_holds(run: Path, tmp_path: Path) -> None:
    result = invoke(run, "-o", tmp_path / "out", "--part", "val", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    file = tmp_path / "out" / "selector.json"
    assert told == json.loads(file.read_text(encoding="utf-8"))
    assert told["runs"][0]["part"] == "val" and not (run / "diagnosis").exists()


def test_what_could_not_be_measured_gives_exit_code_1(run: Path) -> None:
    (run / "checkpoints" / "best.ckpt").unlink()
    result = invoke(run)
    assert result.exit_code == 1
    assert "Soft answers, transfer gap and leak check are left out; to have them: wsizoo train" in (
        result.stderr
    )
    assert "run: not measured" in result.stdout


def test_wrong_usage_is_exit_code_2_and_an_error_1(
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert invoke().exit_code == 2
    assert invoke(run, "--part", "train").exit_code == 2
    assert invoke(run, "--maps", -1).exit_code == 2
    monkeypatch.setattr(sys, "argv", ["wsizoo", "diagnose", "selector", str(tmp_path / "gone")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert capsys.readouterr().err.startswith("DataError: no run at '")


def test_help_teaches_by_an_example() -> None:
    result = CliRunner().invoke(cli, ["diagnose", "selector", "--help"])
    assert "wsizoo diagnose selector RUN --ablate" in result.output
