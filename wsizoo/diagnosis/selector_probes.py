"""What is left in the patches that a selector drops: fresh small models trained on them alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.diagnosis.selector_answers import (
    Tick,
    at_level,
    generator_of,
    measured_of,
    random_rows,
    weighted_of,
)
from wsizoo.diagnosis.selector_gates import kept_rows
from wsizoo.diagnosis.selector_run import OpenRun
from wsizoo.measures.measured import Measured
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.registry import Registry
from wsizoo.stored import find_stored
from wsizoo.train.loading import some_patches
from wsizoo.train.loop import fit
from wsizoo.train.predicting import row_of
from wsizoo.train.samples import Samples
from wsizoo.zoo import assemble

FULL, KEPT, DROPPED, RANDOM, LEAK = "full", "kept", "dropped", "random dropped", "all gates 0"
SHOWN = 2000  # slides that a probe is trained on, one a step
MOST_PATCHES = 4096  # of a slide in a probe's training
LR = 1e-3
PROBE = "{name: abmil, dim: 128, attention: 64, dropout: 0.25, standardise: true}"
SEED = 0

Rows = Callable[[Bag, Tensor], Tensor]  # (a bag, its kept rows) -> the rows of a kind


@dataclass(frozen=True)
class Probed:
    """What fresh models can tell from kinds of patches.

    Args:
        measured: by kind; a kind that could not be tried is told in `notes`.
        chance: what knowing nothing gives. slides: that each probe was shown.
    """

    measured: Mapping[str, Measured]
    chance: float
    slides: int
    notes: tuple[str, ...] = ()

    def left(self, kind: str = DROPPED) -> float | None:
        """(probe - chance) / (full - chance); None where the full bag is not above chance."""
        if kind not in self.measured or not self.measured[FULL].value > self.chance:
            return None
        room = self.measured[FULL].value - self.chance
        return (self.measured[kind].value - self.chance) / room


def probe_patches(run: OpenRun, shown: int, registry: Registry, tick: Tick) -> Probed:
    """Train and measure a probe a kind of patches: ABMIL of one size, seed and number of steps.

    Kinds: all patches; those the selector keeps; those it drops; those that as many random ones
    would leave over (the control); and all patches with every gate 0, in which only what noise and
    denoiser leak can be learned.

    Cost: `shown` slides a kind, at most 4,096 patches of each.
    """
    head = run.model.head
    if head is None or head.compares_slides:
        return Probed({}, math.nan, 0, ("no probes: this head learns nothing of one slide a step",))
    train, tested = _cut(run, "train", tick), _cut(run, run.part, tick)
    found: dict[str, Measured] = {}
    notes, chance = [], math.nan
    for kind, rows in KINDS.items():
        some, others = train.kind(rows), tested.kind(rows)
        if not len(some) or len(others) < len(tested):
            notes.append(f"{kind}: not tried, the selector drops nothing of some slides")
            continue
        answered = _probe(run, kind, some, others, shown, registry, tick)
        if kind == FULL:
            chance = chance_of(run, answered)
        found[kind] = _measured(run, answered)
    if run.missing:
        notes.append(f"{LEAK}: not tried, {run.missing}")
    else:
        answered = _probe(run, LEAK, train.kind(None), tested.kind(None), shown, registry, tick)
        found[LEAK] = _measured(run, answered)
    return Probed(found, chance, shown, tuple(notes))


KINDS: dict[str, Rows] = {
    FULL: lambda bag, kept: torch.arange(len(bag)),
    KEPT: lambda bag, kept: kept,
    DROPPED: lambda bag, kept: _others(len(bag), kept),
    RANDOM: lambda bag, kept: _others(
        len(bag), random_rows(len(bag), len(kept), SEED, bag.slide_id)
    ),
}


def _others(n: int, rows: Tensor) -> Tensor:
    left = torch.ones(n, dtype=torch.bool)
    left[rows] = False
    return left.nonzero()[:, 0]


@dataclass(frozen=True, eq=False)
class _Part:
    """The slides of a part with the rows that the selector keeps of each."""

    run: OpenRun
    samples: Samples
    kept: Sequence[Tensor]
    sizes: Sequence[int]

    def __len__(self) -> int:
        return len(self.samples)

    def kind(self, rows: Rows | None) -> _Tokens:
        """Slides of which a kind of patches is left; None: softly, with all gates 0."""
        drops = [n > len(kept) for n, kept in zip(self.sizes, self.kept, strict=True)]
        needs = rows in (KINDS[DROPPED], KINDS[RANDOM])
        return _Tokens(self, rows, [i for i, d in enumerate(drops) if d or not needs])


def _cut(run: OpenRun, part: str, tick: Tick) -> _Part:
    samples, kept, sizes = run.samples(part, for_training=True), [], []
    with torch.inference_mode():
        for i in range(len(samples)):
            bag = samples[i].to(run.model.device, run.model.dtype)
            kept.append(kept_rows(run.selector, bag).cpu())
            sizes.append(len(bag))
            tick(f"{part} slides scored", i + 1, len(samples))
    return _Part(run, samples, kept, sizes)


class _Tokens(Sequence[Bag]):
    """Slides of one kind of patches, made when asked for."""

    def __init__(self, part: _Part, rows: Rows | None, slides: Sequence[int]) -> None:
        self.part, self.rows, self.slides = part, rows, slides

    def __len__(self) -> int:
        return len(self.slides)

    @overload
    def __getitem__(self, index: int) -> Bag: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Bag]: ...
    def __getitem__(self, index: int | slice) -> Bag | Sequence[Bag]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = self.slides[index]
        bag = self.part.samples[i]
        return bag if self.rows is None else bag.subset(self.rows(bag, self.part.kept[i]))

    def shown(self) -> Iterator[Bag]:
        """As a probe is evaluated on them."""
        for i in range(len(self)):
            bag = self[i]
            yield bag if self.rows is not None else closed(self.part.run, bag, SEED)


def closed(run: OpenRun, bag: Bag, seed: int) -> Bag:
    """The bag as the training path hands it on where every gate is 0, times weights if it has."""
    generator = generator_of(seed, bag.slide_id, run.model.device)
    moved = bag.to(run.model.device, run.model.dtype)
    shut = torch.zeros(len(bag), device=moved.device)
    end = run.selector.end_temperature
    with torch.no_grad():
        found = run.selector.soft(moved, generator=generator, temperature=end, gates=shut)
    features = found.bag.features
    if found.weights is not None:
        features = features * found.weights.to(features)[:, None]
    return found.bag.replace(features=features, target=bag.target)


def _probe(
    run: OpenRun,
    kind: str,
    train: _Tokens,
    tested: _Tokens,
    shown: int,
    registry: Registry,
    tick: Tick,
) -> list[Row]:
    """The answers of a fresh model, trained on patches of a kind, for others of that kind."""
    stored = find_stored(run.folder, registry)
    spec = stored.spec_with(["selector=null", f"aggregator={PROBE}"])
    model = assemble(stored.entry, spec, registry, SEED).to(run.model.device)
    model.requires = run.model.requires
    epochs = math.ceil(shown / len(train))

    def change(bag: Bag, _: None, share: float) -> Bag:
        seed = int(torch.randint(2**31, ()))
        some = some_patches(bag, MOST_PATCHES, torch.Generator().manual_seed(seed))
        return closed(run, some, seed) if train.rows is None else some.to(run.model.device)

    def told(epoch: int, loss: float) -> None:
        tick(f"probe on {kind}", epoch, epochs)

    fit(model, train, epochs=epochs, lr=LR, seed=SEED, augment=change, after_epoch=told)
    return _answers(run, model, tested)


def _answers(run: OpenRun, model: SlideModel, tested: _Tokens) -> list[Row]:
    samples = tested.part.samples.samples
    rows = []
    with torch.inference_mode():
        for i, bag in zip(tested.slides, tested.shown(), strict=True):
            rows.append(row_of(samples[i], bag, run.part, run.task, model, model(bag)))
    return at_level(run, rows)


def _measured(run: OpenRun, rows: Sequence[Row]) -> Measured:
    name = run.measures[0]
    return measured_of(weighted_of(run, rows)[name], name, [str(row["patient"]) for row in rows])


def chance_of(run: OpenRun, rows: Sequence[Row]) -> float:
    """Of the first measure: the commonest class's share, half of all pairs, or the mean's R²."""
    if run.task != "classification":
        return 0.5 if run.task == "survival" else 0.0
    labels = [row["label"] for row in rows]
    return max(labels.count(name) for name in set(labels)) / len(labels)
