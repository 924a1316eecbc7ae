"""Synthetic slides, as bags, and three questions about each: what, how many, where.

A slide is a grid of patches of noise. It carries 1 to 4 clusters, two patches each, of one of four
patterns, all in one quadrant; and artefacts, which show any pattern and are marked as what they
are. What is asked is fixed here, and nothing in it depends on a method.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from wsizoo_plugin_sparselearn.vlm.formats import write_conversations, write_questions
from wsizoo_plugin_sparselearn.vlm.questions import IMAGE, Conversation, Question, Turn

import wsizoo

DIM, EDGE, STEP = 32, 64, 256  # of features; patches of a slide's edge; level-0 px between them
ARTEFACTS = 1 / 32  # of all patches
TRAIN, TEST = 0, 1
QUESTIONS = {
    "which pattern is seen ?": ("ring", "sheet", "cord", "gland"),
    "how many clusters are seen ?": ("one", "two", "three", "four"),
    "where are the clusters ?": ("topleft", "topright", "bottomleft", "bottomright"),
}
LETTERS = "ABCD"
Q = np.linalg.qr(np.random.default_rng(5).standard_normal((DIM, DIM)))[0].T.astype(np.float32)
"""Directions: of clusters, of the four patterns, of artefacts."""


@dataclass(frozen=True)
class Slide:
    """One slide.

    Args:
        bag: (N, 32), N = edge^2, in raster order. evidence: rows of its clusters' patches.
        answers: index of the right option, a question each.
    """

    bag: wsizoo.Bag
    evidence: np.ndarray
    answers: tuple[int, int, int]


def make_slide(split: int, index: int, seed: int = 0, edge: int = EDGE) -> Slide:
    """A slide of a training (its own seed) or of the test, which all seeds share.

    Args:
        edge: in patches, a multiple of 4.
    """
    told = [seed, split, index] if split == TRAIN else [0, split, index]
    rng = np.random.default_rng(told)
    n, blocks = edge * edge, edge // 4  # blocks of 2 x 2 patches along a quadrant's edge
    x = 0.5 * rng.standard_normal((n, DIM), dtype=np.float32)
    pattern, count, quadrant = (int(value) for value in rng.integers(4, size=3))
    cells = rng.choice(blocks * blocks, size=count + 1, replace=False)
    left = edge // 2 * (quadrant % 2) + 2 * (cells % blocks)
    top = edge // 2 * (quadrant // 2) + 2 * (cells // blocks)
    evidence = np.sort(np.concatenate([top * edge + left, top * edge + left + 1]))
    x[evidence] += 3 * Q[0] + 5 * Q[1 + pattern]
    free = np.setdiff1d(np.arange(n), evidence)
    marked = rng.choice(free, round(n * ARTEFACTS), replace=False)
    x[marked] += 6 * Q[5] + 5 * Q[1 + rng.integers(4, size=len(marked))]
    rows = np.arange(n)
    coords = np.stack([rows % edge, rows // edge], 1) * STEP
    bag = wsizoo.Bag(
        torch.from_numpy(x),
        torch.from_numpy(coords),
        spacing=float(STEP),
        slide_id=f"{'train' if split == TRAIN else 'test'}-{told[0]}-{index}",
    )
    return Slide(bag, evidence, (pattern, count, quadrant))


def questions_about(slide: Slide) -> list[Question]:
    """Its three, as SlideBench-VQA has them."""
    return [
        Question(
            f"{slide.bag.slide_id} {task}",
            slide.bag.slide_id,
            text,
            dict(zip(LETTERS, options, strict=True)),
            LETTERS[answer],
            {"Task": task},
        )
        for (text, options), answer, task in zip(
            QUESTIONS.items(), slide.answers, TASKS, strict=True
        )
    ]


def conversation_of(question: Question) -> Conversation:
    """To train on: the question, and its letter as the answer."""
    turn = Turn(f"{IMAGE}\n{question.prompt}", question.answer)
    return Conversation(question.id, (question.slide,), (turn,))


def write_files(folder: Path, train: Iterable[Slide], test: Iterable[Slide]) -> None:
    """`features/*.h5`, `train.json` (SlideInstruct) and `test.csv` (SlideBench-VQA)."""
    learnt: list[Question] = []
    asked: list[Question] = []
    for slides, into in ((train, learnt), (test, asked)):
        for slide in slides:
            bag = slide.bag.replace(encoder="synthetic")
            wsizoo.write_bag(bag, folder / "features" / f"{bag.slide_id}.h5")
            into.extend(questions_about(slide))
    write_conversations(folder / "train.json", map(conversation_of, learnt))
    write_questions(folder / "test.csv", asked, "slidebench-vqa-bcnb")


def vocabulary() -> list[str]:
    """All words of questions, options and answers, those of the template before them."""
    words = ["<unk>", "<pad>", "<bos>", "<eos>", "user", ":", "assistant", *LETTERS]
    for text, options in QUESTIONS.items():
        words += text.split()
        words += [word for a, b in zip(LETTERS, options, strict=True) for word in (f"{a}.", b)]
    return list(dict.fromkeys(words))


TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<bos> user : {{ m['content'] }}"
    "{% else %} assistant : {{ m['content'] }} <eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} assistant :{% endif %}"
)
TASKS: Sequence[str] = ("pattern", "how many", "where")
