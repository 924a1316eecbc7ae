"""Answers of a stand-in for a model, measured by each protocol."""

import csv
import json
import re

import pytest
import torch
from wsizoo_plugin_sparselearn.vlm import asking, evaluation, readings
from wsizoo_plugin_sparselearn.vlm.asking import NO_SLIDE, OTHER, SLIDE, Record
from wsizoo_plugin_sparselearn.vlm.evaluation import ALL, evaluate, measured
from wsizoo_plugin_sparselearn.vlm.features import FeatureFolder
from wsizoo_plugin_sparselearn.vlm.formats import question_file, write_questions
from wsizoo_plugin_sparselearn.vlm.outputs import read_outputs
from wsizoo_plugin_sparselearn.vlm.questions import Question
from wsizoo_plugin_sparselearn.vlm.reporting import write_report

import wsizoo
from wsizoo.errors import DataError, NotFoundError
from wsizoo.formats.read import ReadAs

TEXTS = {"A": "ring", "B": "sheet", "C": "cord", "D": "gland"}
KINDS = ("Microscopy", "Diagnosis")


class Reader:
    """Knows the answer of a slide, which its first feature is; without one it says A.

    Args:
        right: of how many questions it generates the right option; of the others it says nothing.
    """

    def __init__(self, identity="reader 1"):
        self.identity, self.asked = identity, []

    def letter_scores(self, bag, question):
        return {letter: -float(letter != self._letter(bag)) for letter in question.options}

    def text_scores(self, bag, question):
        return self.letter_scores(bag, question)

    def generate(self, bag, text):
        self.asked.append((None if bag is None else bag.slide_id, text))
        letter = self._letter(bag)
        return "A tumour." if letter == "D" else f"{letter}. {TEXTS[letter]}"

    def _letter(self, bag):
        return "A" if bag is None else "ABCD"[int(bag.features[0, 0])]


def slides_in(folder, count=8):
    """Slides of `count` patients, whose first feature is 0 to 3 in turn."""
    names = [f"TCGA-AA-{i:04d}-01Z-00-DX1" for i in range(count)]
    for i, name in enumerate(names):
        features = torch.full((3, 2), float(i % 4))
        bag = wsizoo.Bag(features, slide_id=name, encoder="uni")
        wsizoo.write_bag(bag, folder / "BRCA" / f"{name}.{i}-UUID.h5")
    return names


def slidebench(path, names):
    """Two questions a slide; the right letter is the slide's."""
    questions = [
        Question(
            f"{i}{kind[0]}",
            name,
            "Which pattern?",
            TEXTS,
            "ABCD"[i % 4],
            {"Tumor": "BRCA", "Broad Category": kind, "Narrow Category": f"{kind} 1"},
        )
        for i, name in enumerate(names)
        for kind in KINDS
    ]
    write_questions(path, questions, "slidebench-vqa-tcga")
    return question_file(path)


def value(found, reading, given=SLIDE, group=ALL, of=""):
    (line,) = [
        x
        for x in found.lines
        if (x.reading, x.given, x.group, x.value) == (reading, given, group, of)
    ]
    return line.measured


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def asked(tmp_path):
    file = slidebench(tmp_path / "q.csv", slides_in(tmp_path / "f"))
    return file, FeatureFolder(tmp_path / "f"), tmp_path / "out"


def test_both_readings_are_of_the_same_rows_by_category_and_overall(asked):
    found = evaluate(Reader(), *asked, resamples=50)
    assert value(found, "letter likelihood").value == 1
    assert value(found, "generated").value == 0.75  # of D it says "A tumour."
    assert value(found, "unparsable").value == 0.25
    assert value(found, "generated", group="Broad Category", of="Diagnosis").n == 8
    groups = {(line.group, line.value) for line in found.lines}
    assert groups == {
        (ALL, ""),
        ("Tumor", "BRCA"),
        *(("Broad Category", kind) for kind in KINDS),
        *(("Narrow Category", f"{kind} 1") for kind in KINDS),
    }


def test_intervals_are_by_patient(asked):
    one = value(evaluate(Reader(), *asked, resamples=400), "generated")
    assert (one.n, one.patients) == (16, 8)
    assert one.low <= 0.5 < 0.75 < one.high  # as of 8, not of 16


def test_controls_answer_without_the_slide_and_with_another_patient_s(asked):
    found = evaluate(Reader(), *asked, resamples=50)
    assert value(found, "letter likelihood", NO_SLIDE).value == 0.25
    assert value(found, "majority letter", "always A").value == 0.25
    own = {record.row: record for record in found.records if record.given == OTHER}
    assert len(own) == 16
    right = value(found, "letter likelihood", OTHER).value
    assert right < 1
    assert found.differences["letter likelihood"].value == 0.75
    assert not [note for note in found.notes if "not asked" in note]


def test_without_controls_it_says_so(asked):
    reader = Reader()
    found = evaluate(reader, *asked, controls=False, resamples=0)
    assert len(reader.asked) == 16
    assert found.notes == ["not asked about: no slide, another slide"]


def test_another_slide_is_of_another_patient(tmp_path):
    names = ["TCGA-AA-0000-01Z-00-DX1", "TCGA-AA-0000-01Z-00-DX2", "TCGA-BB-0001-01Z-00-DX1"]
    questions = [Question(str(i), name, "q") for i, name in enumerate(names)]
    files = {name: tmp_path / name for name in names}
    patients = evaluation.patients_of(questions)
    assert patients == ["TCGA-AA-0000", "TCGA-AA-0000", "TCGA-BB-0001"]
    plan = asking.plan(questions, files, patients, (OTHER,))
    assert {each.row: each.path.name for each in plan} == {0: names[2], 1: names[2], 2: names[0]}
    alone = asking.plan(questions[:2], files, patients, (OTHER,))
    assert alone == []


def test_a_file_is_read_once(asked, monkeypatch):
    read = []
    monkeypatch.setattr(
        FeatureFolder,
        "read",
        lambda self, path, own=FeatureFolder.read: (read.append(path), own(self, path))[1],
    )
    evaluate(Reader(), *asked, resamples=0)
    assert len(read) == len(set(read)) == 8


def test_an_interrupted_evaluation_goes_on_where_it_was(asked):
    file, folder, out = asked
    whole = evaluate(Reader(), file, folder, out.with_name("whole"), resamples=20)
    first, ticks = Reader(), []

    def interrupted(slide, done, total):
        ticks.append((done, total))
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(first, file, folder, out, tick=interrupted)
    journal = out / "answers.jsonl"
    journal.write_bytes(journal.read_bytes() + b'{"row": 3, "giv')  # killed while it wrote
    second = Reader()
    found = evaluate(second, file, folder, out, resamples=20)
    assert len(first.asked) + len(second.asked) == 48
    assert ticks[-1] == (10, 48)
    assert found.lines == whole.lines
    assert found.records == whole.records


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"answers": Reader("reader 2")},
            "model was reader 1, now reader 2. Choose another folder",
        ),
        ({"settings": {"max_new_tokens": 5}}, "max_new_tokens was None, now 5"),
        ({"seed": 3}, "seed was 0, now 3"),
    ],
)
def test_an_evaluation_of_another_kind_does_not_go_on(asked, changed, message):
    file, folder, out = asked
    evaluate(Reader(), file, folder, out, resamples=0)
    with pytest.raises(DataError, match=rf"answers\.jsonl' is of another evaluation: {message}"):
        evaluate(changed.pop("answers", Reader()), file, folder, out, **changed)


def test_slides_without_features_are_an_error_unless_they_are_to_be_left_out(asked):
    file, folder, out = asked
    (path,) = (folder.folder / "BRCA").glob("TCGA-AA-0003*")
    path.unlink()
    folder = FeatureFolder(folder.folder)
    with pytest.raises(
        DataError, match=r"1 of 8 slides of '.*q\.csv' have no features .* first 'TCGA-AA-0003"
    ):
        evaluate(Reader(), file, folder, out)
    found = evaluate(Reader(), file, folder, out, available=True, resamples=0)
    assert value(found, "generated").n == 14
    assert found.notes == ["2 questions were left out: their slides have no features"]
    assert value(found, "majority letter", "always A").n == 14


def test_the_report_says_which_file_it_was_and_what_is_wrong_with_it(asked):
    file, folder, out = asked
    broken = [*file.questions, Question("9", file.questions[0].slide, "q", TEXTS, "E")]
    write_questions(file.path, broken, "slidebench-vqa-tcga")
    file = question_file(file.path)
    text = write_report(evaluate(Reader(), file, folder, out, resamples=50), out)
    assert text == (out / "report.md").read_text()
    assert f"- 'q.csv', 17 rows, sha256 {file.sha256}" in text
    assert "left as it is: 1 with an answer outside the options (9)" in text
    assert "1 closed questions have no right option, and count as wrong" in text
    assert re.search(r"\| Broad Category +\| Diagnosis +\| 8 ", text)
    assert re.search(r"\| always A +\| 17 ", text)
    told = json.loads((out / "report.json").read_text())
    assert told["questions"]["rows"] == 17
    assert told["questions"]["sha256"] == file.sha256
    assert told["defects"] == [{"what": "an answer outside the options", "ids": ["9"]}]
    rows = read(out / "table.csv")
    assert {row["reading"] for row in rows} >= {"letter likelihood", "generated", "unparsable"}
    rows = read(out / "answers.csv")
    assert rows[0]["given"] == NO_SLIDE
    assert len(rows) == 3 * 17
    assert {"ID", "Slide", "Answer", "Output", "parsed", "likeliest", "log p A"} <= set(rows[0])


def wsi_vqa(path):
    choices = {"A": "low", "B": "intermediate", "C": "high", "D": "not mentioned"}
    questions = [
        Question("1", "TCGA-AA-0000", "grade?", choices, "high", {}, "not"),
        Question("2", "TCGA-AA-0001", "grade?", choices, "low", {}, "not"),
        Question("3", "TCGA-AA-0000", "infer the survival time?", {}, "812", {}, "not"),
        Question("4", "TCGA-AA-0001", "infer the survival time?", {}, "30", {}, "not"),
        Question("5", "TCGA-AA-0001", "what is seen?", {}, "a large tumour", {}, "not"),
    ]
    write_questions(path, questions, "wsi-vqa")
    return question_file(path)


def records_of(*outputs):
    return [Record(row, SLIDE, text) for row, text in enumerate(outputs)]


def test_wsi_vqa_is_strict_with_the_published_match_and_what_it_gives_for_nothing(tmp_path):
    file = wsi_vqa(tmp_path / "w.json")
    said = records_of("High.", "lo", "700", "25", "a tumour")
    found = measured(file, said, "other", resamples=20)
    assert value(found, "generated, strict").value == 0.5
    assert value(found, "generated, wsi_vqa_difflib").value == 1
    constants = {
        name: value(found, "generated, wsi_vqa_difflib", name).value for name in readings.CONSTANTS
    }
    assert constants["the empty output"] == 1
    assert constants["always the first choice"] == 0.5
    assert value(found, "majority letter", "always C").value == 0.5
    assert value(found, "exact match").n == 3
    assert value(found, "token F1").value == pytest.approx((0 + 0 + 4 / 5) / 3)
    assert value(found, "BLEU-1").n == 3
    assert value(found, "c-index, a short time is a high risk").value == 1
    assert value(found, "c-index, as the published script has it").value == 0
    text = write_report(found, tmp_path / "out")
    assert "the empty output" in text
    assert "0.49 for the output 'a'" in text


def test_an_empty_output_is_wrong_where_the_published_match_calls_it_right(tmp_path):
    file = wsi_vqa(tmp_path / "w.json")
    found = measured(file, records_of("", "", "", "", ""), "nothing", resamples=0)
    assert value(found, "generated, strict").value == 0
    assert value(found, "generated, wsi_vqa_difflib").value == 1
    assert value(found, "BLEU-4").value == 0


def test_options_that_are_not_shown_are_scored_by_their_text(tmp_path):
    file = wsi_vqa(tmp_path / "w.json")
    scores = {"A": -1.0, "B": -9.0, "C": -2.0, "D": -9.0}
    said = [Record(0, SLIDE, "", scores), Record(1, SLIDE, "", scores)]
    found = measured(file, said, "other", resamples=0)
    assert value(found, "option likelihood").value == 0.5
    unscored = [Record(0, SLIDE, "", {}), Record(1, SLIDE, "", scores)]
    assert value(measured(file, unscored, "x", resamples=0), "option likelihood").value == 0.5


def test_quilt_vqa_reads_no_and_not_as_a_no(tmp_path):
    yes_no = {"A": "Yes", "B": "No"}
    questions = [
        Question("1", "a.jpg", "q", yes_no, "yes", {"answer_type": "CLOSED"}, "not"),
        Question("2", "b.jpg", "q", yes_no, "no", {"answer_type": "CLOSED"}, "not"),
        Question("3", "b.jpg", "q", {}, "A gland.", {"answer_type": "OPEN"}, "not"),
    ]
    write_questions(tmp_path / "q.json", questions, "quilt-vqa")
    file = question_file(tmp_path / "q.json")
    lines = [("1", "Certainly"), ("2", "It is not."), ("3", "a gland")]
    said = "".join(json.dumps({"question_id": i, "text": t}) + "\n" for i, t in lines)
    (tmp_path / "p.jsonl").write_text(said)
    records = read_outputs(tmp_path / "p.jsonl", file.questions)
    found = measured(file, records, "other", resamples=0)
    assert value(found, "generated").value == 1
    assert value(found, "generated", group="answer_type", of="CLOSED").n == 2
    assert value(found, "exact match").value == 1


def test_questions_with_yes_or_no_of_wsi_bench_are_parsed(tmp_path):
    questions = [Question(str(i), "T/S.pt", "Is it?", {}, "Yes", {}, "not") for i in range(3)]
    path = tmp_path / "Prognosis_TF_question_test.json"
    write_questions(path, questions, "wsi-bench")
    file = question_file(path)
    found = measured(file, records_of("Yes, it is.", "No.", "Maybe"), "other", resamples=0)
    assert value(found, "generated").value == pytest.approx(1 / 3)
    assert value(found, "unparsable").value == pytest.approx(1 / 3)
    assert value(found, "generated", group="Task", of="Prognosis_TF_question").n == 3


def test_outputs_of_the_official_tester_are_scored(asked, tmp_path):
    file, *_ = asked
    rows = "".join(f"{each.id},{each.answer}.\n" for each in file.questions)
    (tmp_path / "o.csv").write_text("ID,Output\n" + rows)
    records = read_outputs(tmp_path / "o.csv", file.questions)
    assert value(measured(file, records, "x", resamples=0), "generated").value == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ID,Output\n0M,A\n", r"no output of 15 of 16 questions, first '0D'"),
        ("ID,Output\n0M,A\n0M,B\n", "two outputs of question '0M'"),
        ("ID,Said\n0M,A\n", r"has no 'Output'; expected a csv with ID and Output"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(asked, tmp_path, text, message):
    (tmp_path / "o.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_outputs(tmp_path / "o.csv", asked[0].questions)


def test_outputs_that_are_no_json_lines_or_not_there_are_said_to_be_so(asked, tmp_path):
    (tmp_path / "o.jsonl").write_text("A\n")
    with pytest.raises(DataError, match=r"o\.jsonl' is no JSON lines"):
        read_outputs(tmp_path / "o.jsonl", asked[0].questions)
    with pytest.raises(NotFoundError, match="No file at"):
        read_outputs(tmp_path / "x.jsonl", asked[0].questions)


def test_a_slide_is_found_by_its_name_its_barcode_or_its_patient(tmp_path):
    names = ["TCGA-AA-0000-01Z-00-DX1.u1", "TCGA-AA-0000-01A-01-TS1.u2", "7", "70", "S"]
    for name in names:
        (tmp_path / f"{name}.h5").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "S.pt").touch()
    folder = FeatureFolder(tmp_path)
    found = {
        slide: path.stem if (path := folder.find(slide)) else None
        for slide in ("TCGA-AA-0000", "TCGA-AA-0000-01Z-00-DX1", "BCNB/7.csv", "TCGA-AA-000", "8")
    }
    assert found == {
        "TCGA-AA-0000": names[0],
        "TCGA-AA-0000-01Z-00-DX1": names[0],
        "BCNB/7.csv": "7",
        "TCGA-AA-000": None,
        "8": None,
    }
    with pytest.raises(DataError, match=r"slide 'S' could be any of 2 files in .* Move all but"):
        folder.find("S")


def test_bare_tensors_are_read_where_their_format_is_named(tmp_path):
    torch.save(torch.ones(4, 3), tmp_path / "S1.pt")
    folder = FeatureFolder(tmp_path, ReadAs(encoder="gigapath", format="pt"))
    bag = folder.read(folder.find("TCGA-LUSC/S1.pt"))
    assert (bag.slide_id, tuple(bag.features.shape)) == ("S1", (4, 3))


def test_a_folder_without_features_is_refused(tmp_path):
    with pytest.raises(DataError, match="no folder of features at"):
        FeatureFolder(tmp_path / "x")
    with pytest.raises(DataError, match=r"holds no feature files \(\.csv, "):
        FeatureFolder(tmp_path)
