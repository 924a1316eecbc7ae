"""wsizoo diagnose: what is typed, what is told, and what goes wrong."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

import wsizoo
from wsizoo.bag import Bag
from wsizoo.cli import cli, main
from wsizoo.diagnosis.untrained import build_untrained
from wsizoo.errors import NotFoundError
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
    assert {"effective_rank", "bound_2d", "distance_um"} <= set(told[0]["heads"][0])


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


def test_a_trained_model_has_an_untrained_twin_that_overrides_change(
    folder: Path, tmp_path: Path
) -> None:
    model = wsizoo.load(folder / "model")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(2)
    wsizoo.save(model, tmp_path / "moved")

    def told(*arguments: str | Path) -> dict[str, Any]:
        file = folder / "features" / "s0.h5"
        result = invoke("attention", *arguments, file, "--json")
        assert result.exit_code == 0, result.output
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    trained, twin = told(tmp_path / "moved"), told(tmp_path / "moved", "--untrained")
    assert twin == told("span-mil-uni", *WIDE, "--untrained") != trained
    wider = told(tmp_path / "moved", "aggregator.dim=12", "--untrained")
    assert (len(twin["heads"]), len(wider["heads"])) == (3 * 2, 3 * 3)


def test_an_untrained_twin_refuses_the_features_that_the_trained_one_does(folder: Path) -> None:
    requires = wsizoo.load(folder / "model").requires
    for name in (folder / "model", str(folder / "model")):
        twin = build_untrained(name)
        assert twin.requires == requires and not twin.trained
    assert build_untrained(folder / "model", "encoder=resnet50-trunc").requires.encoder != "uni"
    with pytest.raises(NotFoundError, match=r"No model named 'span-mil-unu'\. Did you mean"):
        build_untrained("span-mil-unu")


def test_a_file_named_like_an_override_is_given_with_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s=0.h5").write_bytes((folder / "features" / "s0.h5").read_bytes())
    monkeypatch.chdir(tmp_path)
    result = invoke("attention", folder / "model", "./s=0.h5")
    assert result.exit_code == 0 and result.stdout.startswith("done     s=0")


def test_overrides_of_a_trained_model_leave_its_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = folder / "features" / "s0.h5"
    told = refused(monkeypatch, capsys, "attention", folder / "model", file, "aggregator.dim=12")
    assert told.startswith("SpecError: load(") and "load keeps every trained tensor" in told


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
