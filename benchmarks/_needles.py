"""The needle-in-haystack task, 8 of 4,096 patches decide; how selectors are trained and tried.

Patches are of width 64. Needles lie along one direction and each carries a class; the label is the
class of most. Artefacts carry classes at random and have the largest norms; decoys lie along the
needles' direction without a class; the mean of all patches says next to nothing.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from wsizoo_plugin_sparselearn.comparison import AbmilScore, GumbelTopk, StraightThrough
from wsizoo_plugin_sparselearn.selector import SparseLearn
from wsizoo_plugin_sparselearn.untrained import Norm, Random, UniformGrid

from wsizoo import Aggregated, Aggregator, Bag, ScoredSelector, SoftSelector
from wsizoo.selection import aggregate

CLASSES, DIM, NEEDLES, CROWD = 4, 64, 8, 128  # CROWD: artefacts, and as many decoys
TRAIN, TEST, MONITOR = 0, 1, 2
PER_RUN = 1_000_000  # numbers of training bags that a run may use
FURTHER = PER_RUN // 2  # where those of the second phase begin
BATCH, DECAY, READER_RATE = 8, 1e-4, 5e-3
WINDOW, LEARNT, MOST = 25, 0.5, 2_000  # steps of a running loss; of chance; steps at most
LEARNED: Mapping[str, type[SoftSelector]] = {
    "sparselearn": SparseLearn,
    "gumbel-topk": GumbelTopk,
    "straight-through": StraightThrough,
}
UNTRAINED: Mapping[str, type[ScoredSelector]] = {
    "norm": Norm,
    "uniform-grid": UniformGrid,
    "random": Random,
}


@dataclass(frozen=True)
class Size:
    """How large a run is; defaults are those that count.

    Args:
        n: patches of a bag. k: patches kept. reader, selector: steps of each phase.
        tests: bags that are tried. monitors: bags that rates are chosen by.
    """

    n: int = 4096
    k: int = 32
    reader: int = 500
    selector: int = 300
    tests: int = 256
    monitors: int = 64


@dataclass
class Found:
    """What one selector of one run did on the test bags, (tests,) each; empty: not measured.

    Args:
        hard, soft: whether the class was told by the kept patches, and by the soft ones.
        recall, recall_8: share of the needles among the k, and the 8, best patches.
        overlap: share of the soft budget that lies on the kept patches.
    """

    hard: list[float] = field(default_factory=list)
    soft: list[float] = field(default_factory=list)
    recall: list[float] = field(default_factory=list)
    recall_8: list[float] = field(default_factory=list)
    overlap: list[float] = field(default_factory=list)


@functools.cache
def directions() -> NDArray[np.float32]:
    """(64, 64), rows orthonormal: 0 the needles', 1 to 4 of the classes, 5 the artefacts'."""
    drawn = np.random.default_rng([0, 99]).standard_normal((DIM, DIM))
    return np.asarray(np.linalg.qr(drawn)[0].T, np.float32)


def make_bag(split: int, index: int, n: int) -> tuple[Bag, Tensor]:
    """A bag with its label, and which patches (8,) are needles."""
    q, rng = directions(), np.random.default_rng([0, split, index])
    x = 0.7 * rng.standard_normal((n, DIM), dtype=np.float32)
    label = int(rng.integers(CLASSES))
    order = rng.permutation(n)
    needles, artefacts, decoys = np.split(order[: NEEDLES + 2 * CROWD], [NEEDLES, NEEDLES + CROWD])
    kinds = np.array([label] * 5 + [(label + other) % CLASSES for other in (1, 2, 3)])
    x[needles] += 4 * q[0] + 6 * q[1 + kinds]
    x[artefacts] += 6 * q[5] + 6 * q[1 + rng.integers(CLASSES, size=CROWD)]
    x[decoys] += 6 * q[0]
    bag = Bag(torch.from_numpy(x), slide_id=f"{split}-{index}", target={"label": label})
    return bag, torch.from_numpy(needles)


class Pooling(Aggregator):
    """ABMIL's gated attention on the patches as they are; the mean is brought to one scale."""

    takes_weights = True

    def __init__(self, in_dim: int = DIM, attention: int = 32) -> None:
        super().__init__(in_dim, in_dim)
        self.value, self.gate = nn.Linear(in_dim, attention), nn.Linear(in_dim, attention)
        self.score = nn.Linear(attention, 1)
        self.norm, self.classify = nn.LayerNorm(in_dim), nn.Linear(in_dim, CLASSES)

    def forward(self, bag: Bag, weights: Tensor | None = None) -> Aggregated:
        x = bag.features
        logits = self.score(torch.tanh(self.value(x)) * torch.sigmoid(self.gate(x)))[:, 0]  # (N,)
        attention = torch.softmax(logits, 0)
        if weights is not None:
            attention = attention * weights
            attention = attention / attention.sum()
        slide = self.norm(attention @ x)  # (D,)
        return Aggregated(slide, attention, logits=self.classify(slide))


def trained_reader(seed: int, size: Size) -> tuple[Pooling, int]:
    """Phase A: an aggregator that reads whole bags, and after how many steps it could."""
    torch.manual_seed(seed)
    reader = Pooling().train()
    optimizer = torch.optim.AdamW(reader.parameters(), READER_RATE, weight_decay=DECAY)
    goal, recent = LEARNT * math.log(CLASSES), [math.inf] * WINDOW
    bags = _training(seed * PER_RUN, size)
    for done in itertools.count(1):
        loss = _step(optimizer, bags, lambda bag: _logits(reader(bag)))
        recent = [*recent[1:], loss]
        learnt = sum(recent) / WINDOW < goal
        if done >= size.reader and (learnt or done >= min(MOST, 4 * size.reader)):
            return reader.eval().requires_grad_(False), done
    raise AssertionError


def trained_selector(
    name: str, reader: Pooling, seed: int, rate: float, size: Size
) -> SoftSelector:
    """Phase B: the selector alone, through a reader that stays as it is."""
    torch.manual_seed(PER_RUN + seed)
    extra = {"feedforward": 2 * DIM} if name == "sparselearn" else {}
    selector = LEARNED[name](DIM, size.k, hidden=DIM, warm_up=0.0, anneal=0.8, **extra).train()
    selector.start_training(size.selector, ())
    optimizer = torch.optim.AdamW(selector.parameters(), rate, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, size.selector)
    bags = _training(seed * PER_RUN + FURTHER, size)
    for step in range(size.selector):
        _step(optimizer, bags, lambda bag: _logits(aggregate(selector(bag), reader)))
        schedule.step()
        selector.after_step(step + 1, size.selector)
    return selector.eval()


def attention_of(reader: Pooling, size: Size) -> ScoredSelector:
    """The reader's own attention as a selector."""
    selector = AbmilScore(DIM, size.k, hidden=len(reader.value.weight)).eval()
    state = reader.state_dict()
    selector.scorer.load_state_dict({key: state[key] for key in selector.scorer.state_dict()})
    return selector


def _logits(found: Aggregated) -> Tensor:
    assert found.logits is not None
    return found.logits


def _training(first: int, size: Size) -> Iterator[Bag]:
    return (make_bag(TRAIN, index, size.n)[0] for index in itertools.count(first))


def _step(
    optimizer: torch.optim.Optimizer, bags: Iterator[Bag], logits: Callable[[Bag], Tensor]
) -> float:
    """A step of several bags; their mean loss."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for bag in itertools.islice(bags, BATCH):
        loss = F.cross_entropy(logits(bag)[None], torch.tensor([bag.target["label"]])) / BATCH
        loss.backward()
        total += float(loss.detach())
    optimizer.step()
    return total


@torch.inference_mode()
def tried(selector: ScoredSelector, reader: Pooling, size: Size, split: int = TEST) -> Found:
    """A selector on bags of a split, by what the reader makes of its patches."""
    found = Found()
    for index in range(size.monitors if split == MONITOR else size.tests):
        bag, needles = make_bag(split, index, size.n)
        selected = selector.hard(bag)
        assert selected.index is not None
        found.hard.append(_right(_logits(reader(selected.bag)), bag))
        found.recall.append(float(torch.isin(needles, selected.index).double().mean()))
        if selected.scores is not None:
            best = selected.scores.topk(NEEDLES).indices
            found.recall_8.append(float(torch.isin(needles, best).double().mean()))
        if isinstance(selector, SoftSelector):
            generator = torch.Generator().manual_seed(index)
            soft = selector.soft(bag, generator, selector.end_temperature)
            assert soft.scores is not None
            found.soft.append(_right(_logits(aggregate(soft, reader)), bag))
            found.overlap.append(float(soft.scores[selected.index].sum()) / size.k)
    return found


@torch.inference_mode()
def read_whole(reader: Pooling, size: Size) -> tuple[Found, Found]:
    """The reader on whole bags, and on their needles alone."""
    full, oracle = Found(), Found()
    for index in range(size.tests):
        bag, needles = make_bag(TEST, index, size.n)
        full.hard.append(_right(_logits(reader(bag)), bag))
        oracle.hard.append(_right(_logits(reader(bag.subset(needles.sort().values))), bag))
    return full, oracle


def _right(logits: Tensor, bag: Bag) -> float:
    return float(int(logits.argmax()) == bag.target["label"])


def best_rates(rates: Sequence[float], seed: int, size: Size) -> dict[str, float]:
    """For each learned selector the rate that does best on bags of neither training nor test.

    By accuracy of the kept patches, then by the needles among them: the same effort for each.
    """
    reader, _ = trained_reader(seed, size)

    def worth(name: str, rate: float) -> tuple[float, float]:
        selector = trained_selector(name, reader, seed, rate, size)
        found = tried(selector, reader, size, MONITOR)
        return float(np.mean(found.hard)), float(np.mean(found.recall))

    return {name: max(rates, key=lambda rate: worth(name, rate)) for name in LEARNED}


def run_of(seed: int, rates: Mapping[str, float], size: Size) -> dict[str, Found]:
    """One run: a reader, and every selector through it."""
    reader, _ = trained_reader(seed, size)
    full, oracle = read_whole(reader, size)
    found = {"full bag": full, "the needles": oracle}
    for name in LEARNED:
        selector = trained_selector(name, reader, seed, rates[name], size)
        found[name] = tried(selector, reader, size)
    found["abmil-score"] = tried(attention_of(reader, size), reader, size)
    for name, kind in UNTRAINED.items():
        options = {"seed": seed} if kind is Random else {}
        found[name] = tried(kind(DIM, size.k, **options).eval(), reader, size)
    return found
