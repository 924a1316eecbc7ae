"""wsizoo.cli: what is typed, what is printed, and the exit code."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from wsizoo import cli as cli_package
from wsizoo.cli import COMMANDS, cli, joined, main
from wsizoo.cli.progress import bar, slide_bars
from wsizoo.cli.text import print_field, print_table
from wsizoo.errors import DataError
from wsizoo.slides.store import read_bag, read_header
from wsizoo.slides.tiff import write_pyramid

pty = pytest.importorskip("pty", reason="terminals are tested on POSIX only")
ROOT = Path(__file__).parents[1]


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="wsizoo")


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str | Path
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command line in this process."""
    monkeypatch.setattr(sys, "argv", ["wsizoo", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    return int(caught.value.code or 0), out, err


def shell(command: str) -> subprocess.CompletedProcess[str]:
    """A command in a shell; `wsizoo` is this one."""
    command = command.replace("wsizoo ", f"{sys.executable} -m wsizoo ")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, shell=True, capture_output=True, text=True, env=env, check=False)


def on_terminal(arguments: Sequence[str | Path], columns: int = 80) -> tuple[int, str]:
    """Exit code and everything that a terminal of this width is sent."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "wsizoo", *map(str, arguments)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": str(columns), "TERM": "xterm"}
    with subprocess.Popen(command, stdout=slave, stderr=slave, stdin=slave, env=env) as process:
        os.close(slave)
        chunks = []
        while True:
            try:
                chunk = os.read(master, 4096)
            except OSError:  # Linux's way to say that the other side has closed
                break
            if not chunk:
                break
            chunks.append(chunk)
    os.close(master)
    return process.returncode, b"".join(chunks).decode()


def plain(text: str) -> str:
    """Without colours and movements of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for i in range(2):
        noise = np.random.default_rng(i).integers(-20, 20, (400, 600, 1))
        image = np.full((700, 900, 3), 243, np.uint8)
        image[150:550, 150:750] = np.array([185, 105, 160]) + noise
        write_pyramid(folder / f"S{i}.svs", image, 0.5, (1, 4))
    return folder


@pytest.fixture(scope="module")
def features(slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("features")
    assert invoke("extract", slides, "-o", folder).exit_code == 0
    return folder


def leaf_commands(command: Any = cli, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command with the words that lead to it."""
    context = click.Context(command)
    if not isinstance(command, click.Group):
        return [path]
    names = command.list_commands(context)
    inner = [(name, command.get_command(context, name)) for name in names]
    return [leaf for name, c in inner for leaf in leaf_commands(c, (*path, name))]


LEAVES = leaf_commands()


@pytest.mark.parametrize("words", [*LEAVES, ("new",)], ids=" ".join)
def test_every_help_shows_an_example_and_every_option_is_explained(words: tuple[str, ...]) -> None:
    result = invoke(*words, "--help")
    assert result.exit_code == 0
    assert re.search(rf"Examples?:\n(.*\n)*?  +wsizoo {' '.join(words)}( |\n)", result.output)
    assert max(map(len, result.output.splitlines())) <= 80
    command: Any = cli
    for word in words:
        command = command.get_command(click.Context(command), word)
    for option in command.params:
        assert not isinstance(option, click.Option) or option.help or option.show_default


def test_every_example_is_a_command_that_parses() -> None:
    for words in LEAVES:
        text = invoke(*words, "--help").output
        for line in re.findall(r"^ +wsizoo (.*)$", text, re.MULTILINE):
            typed = joined(line.partition(" && ")[0].split())
            command: Any = cli
            while isinstance(command, click.Group):
                command = command.get_command(click.Context(command), typed.pop(0))
            command.make_parser(click.Context(command)).parse_args(typed)


def test_the_overview_lists_every_command_in_eighty_columns() -> None:
    text = invoke("--help").output
    assert all(f"  {name} " in text for name in COMMANDS)
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_commands_with_results_speak_json(words: tuple[str, ...]) -> None:
    assert words == ("new", "plugin") or "--json" in invoke(*words, "--help").output


def test_exit_code_is_2_for_wrong_usage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, match in [
        (["lst"], "No command 'lst'. Did you mean 'list'? See: wsizoo --help"),
        (["list", "--nonsense"], "No such option"),
        (["extract", "a.svs"], "Missing option '-o'"),
        (["extract", "a.svs", "-o", "out", "--overlap", "1"], "0<=x<1"),
        (["extract", "a.svs", "-o", "out", "--batch-size", "0"], "x>=1"),
        (["extract", "a.svs", "-o", "out", "--patch-mpp", "0"], "x>0"),
        (["extract", "a.svs", "-o", "out", "--patch-size", "-1"], "x>=1"),
        (["extract", "a.svs", "-o", "out", "--mpp", "-0.5"], "x>0"),
        (["extract", "a.svs", "-o", "out", "--min-tissue", "2"], "0<=x<=1"),
        (["predict", "a.svs", "-m", "m", "-o", "out", "--patch-mpp", "0"], "x>0"),
        (["demo", "--slides", "8"], "x>=12"),
    ]:
        code, out, err = run_main(monkeypatch, capsys, *arguments)
        assert (code, out) == (2, "")
        assert match in err


def test_exit_code_is_1_for_an_error_told_in_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, err = run_main(monkeypatch, capsys, "show", "abmil-unii")
    assert (code, out) == (1, "")
    assert err.startswith("NotFoundError: No model named 'abmil-unii'. Did you mean 'abmil-uni'")
    code, _, err = run_main(
        monkeypatch, capsys, "extract", tmp_path, "-o", tmp_path / "out", "--mpp", "264"
    )
    assert code == 1
    assert "Traceback" not in err


def test_a_scale_out_of_range_is_said_once(slides: Path, tmp_path: Path) -> None:
    result = invoke("extract", slides, "-o", tmp_path, "--mpp", "264")
    assert result.exit_code == 1
    assert "--mpp 264 is outside 0.05 to 20" in str(result.exception)


def test_exit_code_is_0_for_help_and_version_and_2_without_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, capsys, "--version")[0] == 0
    assert run_main(monkeypatch, capsys, "--help")[0] == 0
    assert run_main(monkeypatch, capsys)[0] == 2


def replace_command(monkeypatch: pytest.MonkeyPatch, work: Callable[[], None]) -> None:
    """`wsizoo list` does this instead."""
    command = click.Command("list", callback=work)
    monkeypatch.setattr(cli_package._Commands, "get_command", lambda *_: command)


def test_ctrl_c_ends_with_130_and_says_what_was_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    replace_command(monkeypatch, interrupted)
    code, _, err = run_main(monkeypatch, capsys, "list")
    assert code == 130
    assert "Interrupted. What was finished is kept; the same command goes on." in err


def test_an_error_of_wsizoo_is_one_line_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing() -> None:
        raise DataError("no such thing")

    replace_command(monkeypatch, failing)
    assert run_main(monkeypatch, capsys, "list") == (1, "", "DataError: no such thing\n")


def test_a_reader_that_goes_away_is_not_complained_about() -> None:
    result = shell("wsizoo list | head -1")
    assert result.stderr == ""
    assert result.stdout.startswith("model ")
    assert result.stdout.count("\n") == 1


def test_list_shows_models_and_what_to_install_for_the_others() -> None:
    result = invoke("list")
    assert result.exit_code == 0
    assert re.search(r"^abmil-demo +yes +handcrafted-he +abmil +yes +Gated", result.output, re.M)
    assert re.search(r"^span-mil-uni .* span ", result.output, re.M)
    assert "…" not in result.output  # no terminal: nothing is cut


def test_list_names_the_pip_command_of_plugins_that_are_not_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from wsizoo.cli import zoo
    from wsizoo.plugins import discover
    from wsizoo.registry import Registry

    bare = Registry.of(discover(entry_points=[]))
    monkeypatch.setattr(zoo, "default", lambda: bare)
    monkeypatch.setattr("wsizoo.catalogue.default", lambda: bare)
    text = invoke("list").output
    assert re.search(r"^pip install wsizoo-plugin-span +for .*\bspan-mil-uni\b", text, re.M)
    row = next(
        r for r in json.loads(invoke("list", "--json").output) if r["model"] == "span-mil-uni"
    )
    assert (row["installed"], row["plugin"]) == (False, "wsizoo-plugin-span")


def test_list_filters_and_says_when_nothing_matches() -> None:
    rows = json.loads(invoke("list", "abmil*", "--weights", "--json").output)
    feather = [f"abmil-feather-{encoder}" for encoder in ("conch15", "uni", "uni2")]
    assert [row["model"] for row in rows] == ["abmil-demo", *feather]
    assert rows[0]["weights"] is True
    assert "Nothing matches. Everything: wsizoo list" in invoke("list", "zzz*").output
    assert invoke("list", "zzz*").exit_code == 0
    encoders = json.loads(invoke("list", "--encoders", "--json").output)
    rows = {row["encoder"]: row for row in encoders}
    assert rows["handcrafted-he"]["dim"] == 208 and rows["handcrafted-he"]["runs here"]
    assert rows["uni"]["gated"] and rows["uni"]["licence"] == "CC-BY-NC-ND-4.0"
    assert not rows["conch"]["runs here"]
    assert "abmil" in invoke("list", "--parts", "aggregator").output
    # without a name --aggregator lists the aggregators themselves, with one its models
    assert invoke("list", "--aggregator").output == invoke("list", "--parts", "aggregator").output
    rows = json.loads(invoke("list", "--aggregator", "max", "--json").output)
    assert {row["aggregator"] for row in rows} == {"max"}


def test_show_and_plugins_tell_what_is_known() -> None:
    text = invoke("show", "abmil-demo").output
    assert re.search(r"^head +name=classification, classes=\[normal, tumour\]$", text, re.M)
    assert "Load it:   wsizoo.load('abmil-demo')" in text
    assert "Load it" not in invoke("show", "abmil-uni").output
    assert json.loads(invoke("show", "abmil-demo", "--json").output)["name"] == "abmil-demo"
    assert re.search(r"^wsizoo +\S+ +works", invoke("plugins").output, re.M)
    assert json.loads(invoke("plugins", "--json").output)[0]["plugin"] == "wsizoo"


def test_show_tells_of_a_part_what_may_be_overridden() -> None:
    text = invoke("show", "abmil").output
    assert re.search(r"^kind +aggregator$", text, re.M)
    assert re.search(r"^models +.*abmil-demo, .*abmil-uni", text, re.M)
    assert "\n  aggregator.gated=true\n" in text and "\n  aggregator.hidden=[]\n" in text
    assert "in_dim=" not in text
    assert "Each patch is embedded, weighted by a small attention network" in text
    assert "Options:   wsizoo show abmil" in invoke("show", "abmil-uni").output
    facts = json.loads(invoke("show", "abmil", "--json").output)
    assert facts["options"]["dim"] == 512


def test_show_tells_of_an_encoder_how_to_load_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = invoke("show", "uni").output
    assert re.search(r"^precision +fp16$", text, re.M)
    assert "Ask for access: https://huggingface.co/MahmoodLab/UNI, then: hf auth login" in text
    assert "Pin it:    wsizoo pin uni\nLoad it:   wsizoo.load_encoder('uni')" in text
    assert "Pin it" not in invoke("show", "handcrafted-he").output
    assert "load_encoder('hipt-vit256', weights=FOLDER)" in invoke("show", "hipt-vit256").output
    refused = invoke("show", "conch").output
    assert "does not run here: its network is a class of the package" in refused
    assert "Load it" not in refused
    facts = json.loads(invoke("show", "uni", "--json").output)
    assert (facts["kind"], facts["runs_here"], facts["weights_state"]) == (
        "encoder",
        True,
        "not pinned",
    )
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert 'does not run here: pip install "wsizoo[encoders]"' in invoke("show", "uni").output


def test_pin_takes_an_encoder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"repo": "MahmoodLab/UNI", "revision": "a" * 40, "file": "x", "sha256": "b" * 64}
    monkeypatch.setattr("wsizoo.pins.pin", lambda name: found)
    result = invoke("pin", "uni")
    assert re.search(r"^sha256    b{64}$", result.stdout, re.M)
    assert "Now: wsizoo.load_encoder('uni')" in result.stderr


def test_doctor_plans_the_memory_of_a_slide() -> None:
    told = json.loads(invoke("doctor", "--plan", "pixel-mamba-tiny", "--json").output)
    assert 0 < told["forward"] < told["training"]
    assert (told["patches"], told["patch_size"]) == (300, 32)
    more = invoke("doctor", "--plan", "pixel-mamba-tiny", "--patches", "3000").output
    assert re.search(r"^forward +\d\.\d\d GB", more, re.M)
    assert "float32, with the libraries and the weights" in more
    changed = invoke("doctor", "--plan", "pixel-mamba-tiny", "aggregator.recompute=false", "--json")
    assert json.loads(changed.output)["training"] > told["training"]
    refused = invoke("doctor", "a=1")
    assert refused.exit_code == 2
    assert "'a=1' overrides no model: --plan MODEL a=1" in refused.output
    refused = invoke("doctor", "--slide", "a.svs")
    assert refused.exit_code == 2
    assert "'a.svs' is planned for a model: --plan MODEL --slide a.svs" in refused.output


def test_doctor_plans_a_slide_and_a_feature_file(slides: Path, tmp_path: Path) -> None:
    scale = ("--patch-mpp", "1", "--patch-size", "32")
    asked = ("doctor", "--plan", "pixel-mamba-tiny", "encoder.mpp=1.0")
    assert (
        invoke("extract", slides / "S0.svs", "-e", "pixels", *scale, "-o", tmp_path).exit_code == 0
    )
    n = read_header(tmp_path / "S0.h5").n
    for file in (slides / "S0.svs", tmp_path / "S0.h5"):
        told = invoke(*asked, "--slide", file)
        assert re.search(rf"^patches +{n} of 32 px$", told.output, re.M), told.output
    refused = invoke(*asked[:3], "--slide", tmp_path / "S0.h5")
    assert "was made for pixels features with mpp 4.0" in str(refused.exception)
    missing = invoke(*asked, "--slide", tmp_path / "no.svs")
    assert "no.svs is not there, expected a slide file" in str(missing.exception)


def test_doctor_finds_the_core_working() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert re.search(r"^  ok +torch ", result.output, re.M)
    findings = json.loads(invoke("doctor", "--json").output)
    assert all(f["works"] for f in findings if f["needed"])


def test_extract_prints_a_line_a_slide_and_where_the_rest_stands(
    slides: Path, tmp_path: Path
) -> None:
    result = invoke("extract", slides, "-o", tmp_path)
    assert result.exit_code == 0
    assert re.search(r"^done     S0  2 patches  \d+\.\d s$", result.stdout, re.M)
    closing = rf"2 of 2 slides done, \d+ patches/s: {re.escape(str(tmp_path / 'extract.html'))}"
    assert re.search(closing, result.stderr)
    assert re.search(
        r"^present  S1  2 patches", invoke("extract", slides, "-o", tmp_path).stdout, re.M
    )


def test_extract_says_where_much_of_the_tissue_lies_beyond_whole_patches(
    slides: Path, tmp_path: Path
) -> None:
    result = invoke("extract", slides, "-o", tmp_path, "--patch-size", "400")
    told = re.search(
        r"^done     S0  \d+ patches  (\d+)% of the tissue lies beyond whole patches \(--pad\)",
        result.stdout,
        re.M,
    )
    assert told, result.stdout
    rows = list(csv.DictReader((tmp_path / "extract.csv").read_text().splitlines()))
    assert round(float(rows[0]["beyond_grid"]) * 100) == int(told[1]) > 5
    again = invoke("extract", slides, "-o", tmp_path, "--patch-size", "400", "--pad")
    assert "made with padded False, now asked for True" in again.stdout
    wide = ("--patch-size", "400", "--min-tissue", "0.01")
    padded = invoke("extract", slides, "-o", tmp_path / "all", *wide, "--pad")
    assert padded.exit_code == 0 and "beyond" not in padded.stdout
    few, more = (read_header(at / "S0.h5").n for at in (tmp_path, tmp_path / "all"))
    assert few < more


def test_extract_json_is_one_object_a_slide_and_failures_end_with_1(
    slides: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.svs").write_text("no slide")
    result = invoke("extract", slides / "S0.svs", tmp_path / "bad.svs", "-o", tmp_path, "--json")
    assert result.exit_code == 1
    assert result.stderr == ""
    good, bad = map(json.loads, result.stdout.splitlines())
    assert (good["state"], good["file"]) == ("done", str(tmp_path / "S0.h5"))
    assert (bad["state"], bad["slide_id"]) == ("failed", "bad")
    text = invoke("extract", tmp_path / "bad.svs", "-o", tmp_path)
    assert text.stdout.startswith("FAILED   bad: ")
    assert "0 of 1 slides done" in text.stderr


def test_extract_overwrite_mends_what_it_refused(slides: Path, tmp_path: Path) -> None:
    slide = slides / "S0.svs"
    invoke("extract", slide, "-o", tmp_path)
    (tmp_path / "S0.h5").write_bytes(b"half")
    refused = invoke("extract", slide, "-o", tmp_path)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stdout
    assert invoke("extract", slide, "-o", tmp_path, "--overwrite").exit_code == 0
    assert len(read_bag(tmp_path / "S0.h5")) == 2


def test_predict_prints_the_row_and_writes_the_table(features: Path, tmp_path: Path) -> None:
    result = invoke("predict", features, "-m", "abmil-demo", "-o", tmp_path)
    assert result.exit_code == 0
    line = r"^done     S0  prob_normal \S+  prob_tumour \S+  predicted (normal|tumour)$"
    assert re.search(line, result.stdout, re.M)
    assert f"2 of 2 slides done: {tmp_path / 'predictions.csv'}" in result.stderr
    as_json = invoke("predict", features, "-m", "abmil-demo", "-o", tmp_path, "--json")
    rows = [json.loads(line) for line in as_json.stdout.splitlines()]
    assert [row["slide"] for row in rows] == ["S0", "S1"]
    assert rows[0]["files"]["heatmap"] == str(tmp_path / "heatmaps" / "S0.png")


def test_predict_fails_one_slide_and_ends_with_1(features: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.h5").write_text("")
    result = invoke(
        "predict", features, tmp_path / "broken.h5", "-m", "abmil-demo", "-o", tmp_path / "out"
    )
    assert result.exit_code == 1
    assert "FAILED   broken: " in result.stdout
    assert (tmp_path / "out" / "predictions.csv").read_text().count("\n") == 3


def test_embed_and_verify_speak_for_each_file(features: Path, tmp_path: Path) -> None:
    result = invoke("embed", features, "-m", "abmil-demo", "-o", tmp_path)
    assert result.exit_code == 0
    assert re.search(r"^done     S0  dim 128$", result.stdout, re.M)
    good = invoke("verify", "abmil-demo", features / "S0.h5")
    assert good.exit_code == 0
    assert re.search(r"^ok +abmil-demo", good.stdout, re.M)
    made = invoke("verify", tmp_path / "S0.h5", "--json")
    line = {"format": "wsizoo-embedding", "dim": 128, "model": "abmil-demo"}
    assert json.loads(made.stdout) == {
        "name": str(tmp_path / "S0.h5"), "ok": True, **line, "encoder": "handcrafted-he",
    }  # fmt: skip
    (tmp_path / "S0.h5").write_bytes(b"damaged")
    bad = invoke("verify", tmp_path / "S0.h5", features / "S0.h5", "--json")
    assert bad.exit_code == 1
    assert [json.loads(each)["ok"] for each in bad.stdout.splitlines()] == [False, True]


def test_tables_and_fields_fit_a_terminal_and_are_whole_elsewhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"name": "a", "there": True, "text": "long " * 30},
        {"name": "b" * 9, "there": None, "text": 1},
    ]
    print_table(rows)
    whole = capsys.readouterr().out.splitlines()
    assert whole[0].split() == ["name", "there", "text"]
    assert whole[1].startswith("a          yes    long long")
    assert whole[2].startswith("bbbbbbbbb  -      1")
    monkeypatch.setattr("wsizoo.cli.text.terminal_width", lambda: 40)
    print_table(rows)
    cut = capsys.readouterr().out.splitlines()
    assert len(cut[1]) == 40
    assert cut[1].endswith("…")
    assert cut[2] == whole[2]
    print_field("  label  ", "word " * 20)
    wrapped = capsys.readouterr().out.splitlines()
    assert max(map(len, wrapped)) <= 40
    assert all(line.startswith("         word") for line in wrapped[1:])
    print_field("  label  ", "")
    assert capsys.readouterr().out == "  label\n"
    print_table([])
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_bar_is_drawn_on_a_terminal_only(slides: Path, tmp_path: Path) -> None:
    code, sent = on_terminal(["extract", slides, "-o", tmp_path / "a"])
    assert code == 0
    lines = plain(sent).replace("\r", "\n").splitlines()
    assert "\x1b[" in sent
    assert any(re.match(r"[012] of 2 slides", line) for line in lines)
    assert any(re.search(r"done     S1  2 patches  \d+\.\d s *$", line) for line in lines)
    bars = [line for line in lines if "━" in line and "done" not in line]
    assert max(map(len, bars)) <= 80
    quiet = shell(f"wsizoo extract {slides} -o {tmp_path / 'b'}")
    assert "\x1b" not in quiet.stdout + quiet.stderr
    assert len(quiet.stdout.splitlines()) == 2
    assert len(quiet.stderr.splitlines()) == 1


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [Terminal(), io.StringIO()], ids=["terminal", "file"])
def test_bars_are_drawn_on_a_terminal_only(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", stream)
    with slide_bars(2) as (tick, after):
        tick("S0", 1, 2)
        after(lambda result: f"done {result}")("S0")
    drawn = "slides" in stream.getvalue()
    assert drawn is stream.isatty()
    assert capsys.readouterr().out == "done S0\n"
    with slide_bars(2, quiet=True) as (tick, _), bar(quiet=True) as other:
        before = stream.getvalue()
        tick("quiet", 1, 2)
        other("quiet", 1, 2)
    assert "quiet" not in stream.getvalue().removeprefix(before)


def test_a_dark_slide_is_one_message(tmp_path: Path) -> None:
    write_pyramid(tmp_path / "dark.svs", np.full((600, 600, 3), 5, np.uint8), 0.5, (1,))
    result = shell(f"wsizoo extract {tmp_path / 'dark.svs'} -o {tmp_path / 'out'}")
    assert result.returncode == 1
    assert result.stdout.count("dark, so no brightfield slide") == 1
    assert len(result.stderr.splitlines()) == 1


def test_predict_says_the_limits_of_the_model_once(features: Path, tmp_path: Path) -> None:
    result = invoke("predict", features, "-m", "abmil-demo", "-o", tmp_path)
    assert result.stderr.count("A toy trained on synthetic slides") == 1
    assert "A toy" not in result.stdout


def test_predict_again_says_what_was_there(features: Path, tmp_path: Path) -> None:
    invoke("predict", features, "-m", "abmil-demo", "-o", tmp_path)
    again = invoke("predict", features, "-m", "abmil-demo", "-o", tmp_path)
    assert re.search(r"^present  S0  prob_normal 0\.\d+  prob_tumour", again.stdout, re.M)


def test_push_speaks_json_and_publishes_untrained_models_on_demand_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def push(folder: Path, repo: str, **told: Any) -> str:
        asked.append(told)
        return f"hf:{repo}@{'0' * 40}"

    monkeypatch.setattr("wsizoo.publish.push", push)
    told = json.loads(invoke("push", tmp_path, "me/m", "--json").stdout)
    assert told == {"address": f"hf:me/m@{'0' * 40}", "public": False}
    invoke("push", tmp_path, "me/m", "--untrained")
    assert [call["untrained"] for call in asked] == [False, True]


@pytest.mark.slow
def test_lines_go_to_a_redirected_stdout_though_a_bar_is_drawn(
    slides: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    command = f"{sys.executable} -m wsizoo extract {slides} -o {tmp_path / 'out'} > {log}"
    master, slave = pty.openpty()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    with subprocess.Popen(command, shell=True, stderr=slave, env=env) as process:
        process.wait()
    os.close(slave)
    sent = os.read(master, 65536).decode()
    os.close(master)
    assert "slides" in sent
    assert re.findall(r"^done     S\d", log.read_text(), re.M) == ["done     S0", "done     S1"]


def test_listing_does_not_import_torch() -> None:
    code = (
        "import sys; sys.argv = ['wsizoo', 'list']\n"
        "from wsizoo.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "WSIZOO_PLUGINS": ""}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, capture_output=True)
