"""Files of slide language models: what is written is read, and what is wrong is said."""

import json

import pytest
from wsizoo_plugin_sparselearn.vlm.formats import (
    facts_of,
    question_file,
    read_conversations,
    read_questions,
    write_conversations,
    write_questions,
)
from wsizoo_plugin_sparselearn.vlm.questions import (
    Conversation,
    Question,
    Turn,
    defects_of,
    options_in,
    slide_name,
)

from wsizoo.errors import DataError, NotFoundError
from wsizoo.files import sha256_of

FOUR = {"A": "Grade 1", "B": "Grade 2", "C": "None", "D": "NA"}
TCGA = {"Tumor": "BRCA", "Broad Category": "Diagnosis", "Narrow Category": "Grading"}
QUESTIONS = {
    "slidebench-vqa-tcga": [
        Question("1", "TCGA-XX-0000-01Z-00-DX1", "Which grade, roughly?", FOUR, "B", TCGA),
        Question("2", "S2", 'It says "why"?', {"A": "x", "B": "y", "C": "z"}, "C", TCGA),
    ],
    "slidebench-vqa-bcnb": [
        Question("1", "7", "Is ER positive?", {"A": "Yes", "B": "No"}, "A", {"Task": "ER"}),
        Question("2", "1058", "Which subtype?", FOUR, "D", {"Task": "Subtype"}),
    ],
    "wsi-vqa": [
        Question(
            "1",
            "TCGA-XX-0000",
            "what is the nuclear grade?",
            {"A": "low", "B": "high"},
            "high",
            {"Kind": "closed"},
            "not",
        ),
        Question("2", "TCGA-XX-0000", "the survival time?", {}, "812", {"Kind": "open"}, "not"),
    ],
    "wsi-bench": [
        Question(
            "S-1",
            "TCGA-LUSC/S.pt",
            "Which stage? A) I B) II, not B C) III",
            {"A": "I", "B": "II, not B", "C": "III"},
            "C",
            {"Task": "Staging_choice"},
            "text",
        ),
        Question(
            "S-2", "TCGA-LUSC/S.pt", "Why?", {}, "As it is.", {"Task": "Staging_choice"}, "not"
        ),
    ],
    "quilt-vqa": [
        Question("3", "a.jpg", "What?", {}, "A gland.", {"answer_type": "OPEN"}, "not"),
        Question(
            "4", "a.jpg", "Is it?", {"A": "Yes", "B": "No"}, "no", {"answer_type": "CLOSED"}, "not"
        ),
    ],
}
SUFFIX = {"slidebench-vqa-tcga": "csv", "slidebench-vqa-bcnb": "csv"}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_are_written_are_read(tmp_path, name):
    path = tmp_path / f"Staging_choice_test.{SUFFIX.get(name, 'json')}"
    write_questions(path, QUESTIONS[name], name)
    found = question_file(path)
    assert (found.format, found.sha256) == (name, sha256_of(path))
    assert found.questions == QUESTIONS[name] == read_questions(path)


def test_the_files_are_as_they_are_published(tmp_path):
    write_questions(tmp_path / "t.csv", QUESTIONS["slidebench-vqa-tcga"], "slidebench-vqa-tcga")
    head, first, *_ = (tmp_path / "t.csv").read_text().splitlines()
    assert head == "ID,Slide,Tumor,Broad Category,Narrow Category,Question,A,B,C,D,Answer"
    assert first.startswith("1,TCGA-XX-0000-01Z-00-DX1,BRCA,Diagnosis,Grading,")
    write_questions(tmp_path / "w.json", QUESTIONS["wsi-vqa"], "wsi-vqa")
    closed, open_ = json.loads((tmp_path / "w.json").read_text())
    assert closed["Choice"] == ["low", "high"]
    assert open_ == {"Id": "TCGA-XX-0000", "Question": "the survival time?", "Answer": "812"}


def test_what_the_official_tester_adds_is_no_category(tmp_path):
    text = "ID,Slide,Task,Question,A,B,Answer,Output\n1,7,ER,q?,x,y,A,B. y\n"
    (tmp_path / "t.csv").write_text(text)
    (question,) = read_questions(tmp_path / "t.csv")
    assert question.categories == {"Task": "ER"}


def test_conversations_that_are_written_are_read(tmp_path):
    given = [
        Conversation("train::7", ("S1.csv",), (Turn("Is it?\n<image>", "Yes."),)),
        Conversation(8, ("S1.csv", "S2.csv"), (Turn("<image>\na", "b"), Turn("c", "d"))),
        Conversation(9, (), (Turn("a", ""),)),
    ]
    write_conversations(tmp_path / "c.json", given)
    assert read_conversations(tmp_path / "c.json") == given


def test_llava_s_layout_and_leading_answers_are_read(tmp_path):
    said = [("gpt", "hello"), ("human", "<image>\nq"), ("gpt", "a")]
    turns = [{"from": role, "value": value} for role, value in said]
    items = [{"id": 3, "image": "TCGA-LUSC/S1.pt", "conversations": turns}]
    (tmp_path / "c.json").write_text(json.dumps(items))
    (found,) = read_conversations(tmp_path / "c.json")
    assert found == Conversation(3, ("TCGA-LUSC/S1.pt",), (Turn("<image>\nq", "a"),))


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([("user", "q")], r"item 1 \(id 'x'\): role 'user', expected 'human' or 'gpt'"),
        ([("human", "q")], r"roles are \['human'\], expected human and gpt in turn"),
        ([("human", "q"), ("human", "q"), ("gpt", "a")], "expected human and gpt in turn"),
        ([("gpt", "a")], "expected human and gpt in turn"),
        ([("human", None), ("gpt", "a")], "'value' is None, expected a text"),
    ],
)
def test_conversations_that_are_none_are_refused(tmp_path, turns, message):
    said = [{"from": role, "value": value} for role, value in turns]
    (tmp_path / "c.json").write_text(json.dumps([{"id": "x", "conversations": said}]))
    with pytest.raises(DataError, match=message):
        read_conversations(tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[", "c.json' is no JSON: Expecting value"),
        ("[]", "holds no list of items"),
        ('{"a": 1}', "holds no list of items"),
        ('[{"odd": 1}]', r"first item has \['odd'\]\. Known files: SlideBench-VQA: a \.csv with"),
        ('[{"Id": "x", "Answer": "a"}]', "item 1: no 'Question', expected a text"),
        (
            '[{"Id": "x", "Question": "q", "Answer": "a", "Choice": []}]',
            r"'Choice' is \[\], expected a list of 1 to 8",
        ),
        (
            '[{"id": 1, "image": 4, "conversations": '
            '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]',
            "'image' is 4, expected a name or a list",
        ),
        (
            '[{"id": 1, "conversations": '
            '[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]',
            "0 slides and 1 turns, expected a question about one slide",
        ),
        ('[{"id": 1, "conversations": 3}]', "no list 'conversations'; it has"),
    ],
)
def test_files_that_are_none_of_them_are_refused(tmp_path, text, message):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_questions(tmp_path / "c.json")


def test_files_that_are_not_there_or_no_text_are_said_to_be_so(tmp_path):
    with pytest.raises(NotFoundError, match=r"No file at '.*c\.json'"):
        read_conversations(tmp_path / "c.json")
    (tmp_path / "c.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"c\.json' cannot be read as text"):
        read_conversations(tmp_path / "c.json")
    (tmp_path / "c.csv").write_text("ID,Slide,Question,A,Answer\n1,S,q,a,A\n")
    with pytest.raises(DataError, match=r"no column B; expected a \.csv with ID, Slide, Question"):
        read_questions(tmp_path / "c.csv")
    with pytest.raises(NotFoundError, match="No format 'pathchat' of questions"):
        write_questions(tmp_path / "x", [], "pathchat")


def test_defects_are_told_with_their_rows_and_nothing_is_mended(tmp_path):
    two = {"A": "x", "B": "y"}
    given = [
        Question("1", "S", "q", two, "A"),
        Question("2", "S", "q", two, "C"),
        Question("3", "S", "q", two, ""),
        Question("4", "S", "q", {"A": "x", "C": "X."}, "C"),
        Question("4", "S", "q", {"A": "x"}, "A"),
        Question("5", "S", "q", {}, "B."),
    ]
    found = {each.what: each.ids for each in defects_of(given)}
    assert found == {
        "an answer outside the options": ("2",),
        "an empty answer": ("3",),
        "two options of one text": ("4",),
        "a gap in the option letters": ("4",),
        "a single option": ("4",),
        "an id that another has too": ("4",),
        "a letter as answer and no option letters": ("5",),
    }
    write_questions(tmp_path / "t.csv", given, "slidebench-vqa-bcnb")
    assert [each.answer for each in read_questions(tmp_path / "t.csv")] == [
        "A", "C", "", "C", "A", "B.",
    ]  # fmt: skip


def test_defects_of_conversations_are_told(tmp_path):
    ask = "<image>\nWhich?\nA. x\nB. y"
    said = [
        (1, ask, "B. y"),
        (2, ask, "C"),
        (3, ask, "A tumour."),
        (4, "<image>\nWhich?", "B"),
        (5, "<image>\nWhich?\nA. \nB. y", "B"),
        (6, "Which?", " "),
        (7, "<image>\n<image>\nWhich?", "x"),
    ]
    given = [Conversation(i, ("S",), (Turn(q, a),)) for i, q, a in said]
    found = {each.what: each.ids for each in defects_of(given)}
    assert found == {
        "an answer outside the options": ("2",),
        "a letter as answer and no option letters": ("4",),
        "an option without text": ("5",),
        "an empty answer": ("6",),
        "0 times <image>, expected once": ("6",),
        "2 times <image>, expected once": ("7",),
    }
    write_conversations(tmp_path / "c.json", given)
    told = facts_of(tmp_path / "c.json", read_conversations(tmp_path / "c.json"))
    assert told[0] == f"'c.json', 7 rows, sha256 {sha256_of(tmp_path / 'c.json')}"
    assert "in the file, left as it is: 1 with an empty answer (6)" in told
    many = [Conversation(i, (), (Turn("q", ""),)) for i in range(7)]
    assert [str(each) for each in defects_of(many)] == [
        "7 with an empty answer (0, 1, 2, 3, 4, ...)"
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Which? A) one B) two C) three", {"A": "one", "B": "two", "C": "three"}),
        ("Which?\nA. one\nB. two\n<image>", {"A": "one", "B": "two"}),
        ("Which? A)one B)two", {"A": "one", "B": "two"}),
        ("Hepatitis A. Which? A) x B) y", {"A": "x", "B": "y"}),
        ("Vitamin A) or what? A) x B) y", {"A": "x", "B": "y"}),
        ("Is it A. or not?", {}),
        ("Stage IIA. or B. ?", {}),
        ("nothing", {}),
    ],
)
def test_options_within_a_text_are_found(text, expected):
    assert options_in(text) == expected


def test_the_right_option_is_a_letter_or_a_text_of_one():
    three = {"A": "low", "B": "High.", "C": "Not mentioned"}
    answers = {"A": "A", "high": "B", "not mentioned": "C", "D": None, "": None}
    assert {a: Question("1", "S", "q", three, a).right for a in answers} == answers
    assert Question("1", "S", "q", {"A": "x", "B": "x"}, "x").right is None


def test_a_prompt_lists_the_options_that_there_are():
    question = Question("1", "S", "Which?", {"A": "x", "C": "z"}, "A")
    assert question.prompt == "Which?\nA. x\nC. z"
    assert Question("1", "S", "Which?", {"A": "x"}, "A", shown="not").prompt == "Which?"


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("TCGA-LUSC/TCGA-1.5f.pt", "TCGA-1.5f"),
        ("S1.csv", "S1"),
        ("S1", "S1"),
        (r"a\S.h5", "S"),
        ("S1.svs", "S1.svs"),
    ],
)
def test_a_slide_is_named_without_folder_and_suffix(told, name):
    assert slide_name(told) == name
