"""A SlideVLM answers the questions of a file, in Python and on the command line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from wsizoo_plugin_sparselearn.vlm import tiny
from wsizoo_plugin_sparselearn.vlm.__main__ import main
from wsizoo_plugin_sparselearn.vlm.answering import ModelAnswers
from wsizoo_plugin_sparselearn.vlm.asking import NO_SLIDE, SLIDE
from wsizoo_plugin_sparselearn.vlm.evaluation import evaluate
from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
from wsizoo_plugin_sparselearn.vlm.formats import question_file, write_questions
from wsizoo_plugin_sparselearn.vlm.questions import Question
from wsizoo_plugin_sparselearn.vlm.reporting import write_report

import wsizoo
from wsizoo.errors import DataError, FingerprintError, SpecError
from wsizoo.plugins import installed
from wsizoo.registry import Entry, Registry

OPTIONS = {"A": "ring", "B": "sheet", "C": "cord", "D": "gland"}
ASKED = Question("1", "S", "which pattern is seen ?", OPTIONS, "B", {"Task": "pattern"})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lm = {"folder": str(tiny.folder(tmp_path_factory.mktemp("lm"))), "dtype": "float32"}
    record = {
        "summary": "a toy",
        "licence": "MIT",
        "source": "a test",
        "encoder": {"name": "made-up", "dim": 8},
        "model": {"name": "slidevlm", "lm": lm},
    }
    known = Registry(installed(), models={"toy": Entry("toy", record, "a test")})
    return wsizoo.build("toy", seed=1, registry=known)


def test_letters_are_scored_as_the_model_s_own_choice_does(model):
    answers, bag = ModelAnswers(model), tiny.bag()
    for given in (bag, None):
        found = answers.letter_scores(given, ASKED)
        own = model.whole.choose(given, ASKED.text, list(OPTIONS.values()), "letter").scores
        assert list(found) == list("ABCD")
        torch.testing.assert_close(torch.tensor(list(found.values())), own)
    two = Question("1", "S", ASKED.text, {"A": "ring", "C": "cord"}, "A")
    assert list(answers.letter_scores(bag, two)) == ["A", "C"]


def test_options_within_the_text_are_not_listed_again(model):
    text = f"{ASKED.text} A. ring B. sheet C. cord D. gland"
    within = Question("1", "S", text, OPTIONS, "B", {}, "text")
    answers = ModelAnswers(model)
    # blanks and line ends are one to this tokenizer
    assert answers.letter_scores(tiny.bag(), within) == answers.letter_scores(tiny.bag(), ASKED)


@pytest.mark.parametrize("scoring", ["mean", "sum", "per-character", "pmi"])
def test_texts_are_scored_as_it_is_asked_for(model, scoring):
    answers, bag = ModelAnswers(model, scoring), tiny.bag()
    question = Question("1", "S", ASKED.text, OPTIONS, "ring", {}, "not")
    found = torch.tensor(list(answers.text_scores(bag, question).values()))
    own = model.whole.choose(bag, ASKED.text, list(OPTIONS.values()), scoring).scores
    torch.testing.assert_close(found, own)
    assert len(answers.text_scores(None, question)) == 4


def test_options_that_cannot_be_told_apart_have_no_scores(model):
    answers = ModelAnswers(model)
    for options in ({"A": "ring", "B": "ring"}, {"A": "ring"}):
        question = Question("1", "S", "q", options, "ring", {}, "not")
        assert answers.text_scores(tiny.bag(), question) == {}


def test_what_is_generated_is_the_model_s_answer(model):
    answers, bag = ModelAnswers(model, max_new_tokens=3), tiny.bag()
    prompt = f"<image>\n{ASKED.prompt}"
    assert answers.generate(bag, ASKED.prompt) == model.whole.generate(bag, prompt, 3)
    assert answers.generate(None, ASKED.prompt) == model.whole.generate(None, prompt, 3)


def test_the_identity_changes_with_what_was_trained(model):
    first = ModelAnswers(model).identity
    assert first == ModelAnswers(model).identity
    scale = model.whole.projector.scale
    before = scale.detach().clone()
    with torch.no_grad():
        scale += 1
    assert ModelAnswers(model).identity != first
    with torch.no_grad():
        scale.copy_(before)


def test_features_of_another_encoder_are_refused(model):
    bag = tiny.bag(encoder="uni")
    with pytest.raises(FingerprintError, match=r"uni"):
        ModelAnswers(model).letter_scores(bag, ASKED)
    assert len(ModelAnswers(model, force=True).letter_scores(bag, ASKED)) == 4


def test_other_models_answer_no_questions():
    with pytest.raises(SpecError, match="'abmil-uni' answers no questions: it is no slidevlm"):
        ModelAnswers(wsizoo.build("abmil-uni", "head.classes=[a,b]"))


def files_in(folder: Path):
    for seed in range(3):
        bag = tiny.bag(seed=seed, encoder="made-up")
        wsizoo.write_bag(bag, folder / "features" / f"slide-{seed}.h5")
    asked = [
        Question(str(i), f"slide-{i}", ASKED.text, OPTIONS, "ABC"[i], {"Task": "pattern"})
        for i in range(3)
    ]
    write_questions(folder / "test.csv", asked, "slidebench-vqa-bcnb")


def test_a_model_is_evaluated_from_files(model, tmp_path):
    files_in(tmp_path)
    answers = ModelAnswers(model, max_new_tokens=2)
    told = question_file(tmp_path / "test.csv"), FeatureFolder(tmp_path / "features")
    found = evaluate(answers, *told, tmp_path / "out", resamples=20)
    assert {(x.given, x.reading) for x in found.lines} >= {
        (given, reading)
        for given in (SLIDE, NO_SLIDE)
        for reading in ("letter likelihood", "generated", "unparsable")
    }
    likely = [max(r.scores, key=r.scores.get) for r in found.records if r.given == NO_SLIDE]
    assert len(set(likely)) == 1  # the question is the same, and no slide tells them apart
    assert "## Closed questions, by category" in write_report(found, tmp_path / "out")


def invoked(folder, monkeypatch, *told):
    monkeypatch.chdir(folder)
    return CliRunner().invoke(main, [*told, "-o", "out"])


def test_the_command_evaluates_a_saved_model_and_goes_on(model, tmp_path, monkeypatch):
    files_in(tmp_path)
    wsizoo.save(model, tmp_path / "model")
    told = ["evaluate", "model", "test.csv", "features", "--max-new-tokens", "2", "-q"]
    done = invoked(tmp_path, monkeypatch, *told)
    assert done.exit_code == 0, done.output
    assert "'test.csv', 3 rows, sha256" in done.stdout
    journal = tmp_path / "out" / "answers.jsonl"
    lines = journal.read_text().splitlines()
    assert len(lines) == 1 + 9
    journal.write_text("\n".join(lines[:5]) + "\n")
    assert invoked(tmp_path, monkeypatch, *told).stdout == done.stdout
    assert len(journal.read_text().splitlines()) == 10
    other = invoked(tmp_path, monkeypatch, *told, "--seed", "1")
    with pytest.raises(DataError, match=r"out.answers\.jsonl' is of another evaluation: seed was"):
        raise other.exception


def test_the_command_scores_what_another_model_said(tmp_path, monkeypatch):
    files_in(tmp_path)
    (tmp_path / "said.csv").write_text("ID,Output\n0,A.\n1,B. sheet\n2,A tumour\n")
    done = invoked(tmp_path, monkeypatch, "score", "test.csv", "said.csv")
    assert done.exit_code == 0, done.output
    (line,) = [
        each
        for each in json.loads((tmp_path / "out" / "report.json").read_text())["measures"]
        if (each["group"], each["reading"]) == ("all", "generated")
    ]
    assert line["measure"] == pytest.approx(2 / 3)


def test_the_command_knows_every_way_to_score_texts():
    from wsizoo_plugin_sparselearn.vlm import __main__, choices

    assert {*__main__.SCORINGS, "letter"} == set(choices.SCORINGS)


@pytest.mark.parametrize(
    ("told", "code", "message"),
    [
        (["evaluate", "m", "q", "f", "--scoring", "foo"], 2, "'foo' is not one of 'mean', 'sum'"),
        (["score", "test.csv"], 2, "Missing argument 'OUTPUTS'"),
        (
            ["score", "test.csv", "said.csv", "-o", "out"],
            1,
            "NotFoundError: No table at 'test.csv'",
        ),
    ],
)
def test_what_is_wrong_is_one_message_on_the_command_line(tmp_path, told, code, message):
    command = [sys.executable, "-m", "wsizoo_plugin_sparselearn.vlm", *told]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
