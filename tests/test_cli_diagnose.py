"""wsizoo diagnose: what is typed, what is told, and what goes wrong."""

import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import wsizoo
from wsizoo.bag import Bag
from wsizoo.cli import cli, main
from wsizoo.fingerprint import Fingerprint
from wsizoo.slides.store import write_bag

pytest.importorskip("wsizoo_plugin_span")  # a model of the registry that has attention
WIDE = ("encoder=uni", "head.classes=[a,b]", "aggregator.dim=8", "aggregator.head_dim=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model/` and `features/` of two slides."""
    folder = tmp_path_factory.mktemp("diagnose")
    torch.manual_seed(0)
    model = wsizoo.build("span-mil-uni", *WIDE)
    model.trained = True
    wsizoo.save(model, folder / "model")
    for i in range(2):
        at = torch.arange(30 + i)
        cells = torch.stack([at % 6, at // 6], 1)
        made = Fingerprint("uni", mpp=0.5)
        bag = Bag(torch.randn(len(at), 1024), cells * 224, spacing=224.0, encoder=made)
        write_bag(bag.replace(mpp=0.5, slide_id=f"s{i}"), folder / "features" / f"s{i}.h5")
    return folder


def invoke(*arguments: str | Path | int) -> Result:
    return CliRunner().invoke(cli, ["diagnose", *map(str, arguments)], prog_name="wsizoo")


def refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> str:
    """What the command tells when it ends with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["wsizoo", "diagnose", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    return capsys.readouterr().err


def test_a_table_is_printed_and_a_folder_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = invoke("attention", folder / "model", folder / "features", "-o", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == "done     s0  all patches of 30"
    head = next(line for line in lines if line.startswith("slide"))
    assert "rank 0.001" in head and "bound 2d" in head and "within" in head
    assert sum(line.startswith(("s0 ", "s1 ")) for line in lines) == 2 * 3 * 2
    assert "full rank nearly always" in result.stderr
    assert f"Open {out / 'attention.html'}" in result.stderr
    assert sorted(file.name for file in out.iterdir()) == [
        "attention.csv", "attention.html", "attention.json",
    ]  # fmt: skip


def test_json_is_a_line_a_slide(folder: Path) -> None:
    result = invoke(
        "attention", folder / "model", folder / "features", "--max-patches", 12, "--json"
    )
    assert result.exit_code == 0, result.output
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["slide_id"], one["patches"], one["window"]) for one in told] == [
        ("s0", 30, 12), ("s1", 31, 12),
    ]  # fmt: skip
    assert {"effective_rank", "bound_2d_holds", "distance_um"} <= set(told[0]["heads"][0])


def test_a_window_is_told(folder: Path) -> None:
    file = folder / "features" / "s0.h5"
    result = invoke("attention", folder / "model", file, "--max-patches", 9, "--patch", 4)
    assert result.stdout.splitlines()[0] == "done     s0  9 patches of 30 around patch 4"
    assert "Pictures: -o OUT" in result.stderr


def test_a_slide_that_fails_gives_exit_code_1(folder: Path) -> None:
    result = invoke("attention", folder / "model", folder / "features", "--patch", 30)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "FAILED   s0: slide 's0' has no patch 30, expected 0 to 29"
    assert lines[1].startswith("done     s1")


def test_random_weights_are_asked_for_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "features" / "s0.h5"
    told = refused(monkeypatch, capsys, "attention", "span-mil-uni", file)
    assert "NoWeightsError" in told and "--untrained" in told
    for name in ("span-mil-uni", "span-unet-uni"):
        result = invoke("attention", name, file, "--untrained")
        assert result.exit_code == 0, result.output


def test_what_cannot_be_diagnosed_says_why(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = folder / "features" / "s0.h5"
    mine = write_bag(Bag(torch.zeros(2, 208)), tmp_path / "mine.h5")
    told = refused(monkeypatch, capsys, "attention", "abmil-demo", mine)
    assert told.startswith("DataError: 'abmil-demo' computes no attention between patches")
    result = invoke("attention", folder / "model", mine)
    assert result.exit_code == 1 and result.stderr == "" and "FAILED   mine" in result.stdout
    told = refused(monkeypatch, capsys, "attention", folder / "model", folder / "none.h5")
    assert "none.h5" in told
    assert invoke("attention", folder / "model").exit_code == 2
    assert invoke("attention", folder / "model", file, "--max-patches", 1).exit_code == 2
    assert invoke("attention", folder / "model", file, "--radius", 0).exit_code == 2


def test_help_teaches_by_an_example() -> None:
    assert "wsizoo diagnose attention RUN features/slide.h5" in invoke("attention", "--help").output
