"""The answers of one model with its patches chosen softly, hard, at random, and not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.diagnosis.selector_gates import SlideGates, slide_gates
from wsizoo.diagnosis.selector_run import OpenRun
from wsizoo.interfaces import Selected, Selector
from wsizoo.measures.bootstrap import RESAMPLES, Resamples
from wsizoo.measures.compare import Difference, paired_bootstrap
from wsizoo.measures.measured import Measured, at_the_bound, with_intervals
from wsizoo.measures.weighted import Floats, Weighted
from wsizoo.model import SlideModel
from wsizoo.prediction_files import Row
from wsizoo.selection import SoftSelector, kept_count
from wsizoo.train.loading import read_ahead
from wsizoo.train.measuring import any_resample, labels_of_two
from wsizoo.train.predicting import edges_of, row_of
from wsizoo.train.predictions import by_patient

Choose = Callable[[Bag], Selected]
Tick = Callable[[str, int, int], None]
DRAWS = 5  # of noise in the soft path, and of random patches
SOFT, HARD, RANDOM, FULL = "soft", "hard", "random", "full"


class Chosen(Selector):
    """Another choice of patches in the place of a model's selector."""

    def __init__(self, in_dim: int, choose: Choose) -> None:
        super().__init__(in_dim)
        self.choose = choose

    def forward(self, bag: Bag) -> Selected:
        return self.choose(bag)


def choosing(model: SlideModel, choose: Choose | None) -> SlideModel:
    """The same aggregator and head behind another choice of patches; None: all of them."""
    selector = None if choose is None else Chosen(model.in_dim, choose)
    changed = SlideModel(
        model.name,
        model.spec,
        model.in_dim,
        aggregator=model.aggregator,
        head=model.head,
        selector=selector,
        requires=model.requires,
    )
    return changed.eval()


def softly(selector: SoftSelector, draw: int) -> Choose:
    """The training path at the end temperature, with noise that slide and draw decide."""

    def choose(bag: Bag) -> Selected:
        generator = generator_of(draw, bag.slide_id, bag.device)
        return selector.soft(bag, generator=generator, temperature=selector.end_temperature)

    return choose


def at_random(selector: SoftSelector, seed: int) -> Choose:
    """As many patches as the selector keeps, by slide and seed alone."""

    def choose(bag: Bag) -> Selected:
        rows = random_rows(len(bag), kept_count(selector.k, len(bag)), seed, bag.slide_id)
        rows = rows.to(bag.device)
        return Selected(bag.subset(rows), rows)

    return choose


def random_rows(n: int, k: int, seed: int, slide: str) -> Tensor:
    """k of n rows without replacement, ascending."""
    drawn = torch.randperm(n, generator=generator_of(seed, slide))[:k]
    return drawn.sort().values


def generator_of(seed: int, slide: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that seed and slide alone decide."""
    word = int.from_bytes(hashlib.sha256(slide.encode()).digest()[:4], "little")
    state = int(np.random.SeedSequence([seed, word]).generate_state(1)[0])
    return torch.Generator(device).manual_seed(state)


@dataclass(frozen=True, eq=False)
class Answers:
    """What a run answers of its evaluated part.

    Args:
        rows: by choice of patches, of each draw, a row a slide or patient.
        gates: of each slide.
    """

    run: OpenRun
    rows: Mapping[str, Sequence[Sequence[Row]]]
    gates: Sequence[SlideGates]

    @property
    def patients(self) -> list[str]:
        return [str(row["patient"]) for row in self.rows[HARD][0]]

    def weighted(self, choice: str, measure: str) -> Weighted:
        """The mean over draws of a measure, in any resample of the rows."""
        each = [weighted_of(self.run, rows)[measure] for rows in self.rows[choice]]

        def mean(weights: Floats) -> Floats:
            found: Floats = np.mean([one(weights) for one in each], axis=0)
            return found

        return mean

    def each(self, choice: str, measure: str) -> list[float]:
        """The measure of each draw."""
        ones = np.ones((1, len(self.patients)))
        rows = self.rows[choice]
        return [float(weighted_of(self.run, one)[measure](ones)[0]) for one in rows]

    def measured(self, choice: str, measure: str) -> Measured:
        """With its interval by patient."""
        found = measured_of(self.weighted(choice, measure), measure, self.patients)
        labels = labels_of_two(self.rows[HARD][0], self.run.task, self.run.model.classes)
        if measure != "auc" or labels is None:
            return found
        return at_the_bound(found, list(labels.values()))

    def difference(self, a: str, b: str, measure: str) -> Difference:
        """a minus b, in the same resamples of patients."""
        first, second = self.weighted(a, measure), self.weighted(b, measure)
        return paired_bootstrap(first, second, len(self.patients), self.patients)


def weighted_of(run: OpenRun, rows: Sequence[Row]) -> dict[str, Weighted]:
    """The measures of a run's task, in any resample of rows of slides or patients."""
    censoring = run.record.get("censoring")
    return any_resample(
        rows,
        run.task,
        classes=list(run.model.classes) or None,
        edges=edges_of(run.model),
        censoring=censoring and (censoring["times"], censoring["events"]),
    )


def measured_of(measure: Weighted, name: str, patients: Sequence[str]) -> Measured:
    """A measure with its interval."""
    drawn = Resamples(len(patients), patients, RESAMPLES)
    return with_intervals({name: measure}, drawn)[name]


def at_level(run: OpenRun, rows: Sequence[Row]) -> list[Row]:
    """Rows of slides as they are measured: these, or their means by patient."""
    return by_patient(rows, run.task) if run.level == "patient" else list(rows)


def answer(run: OpenRun, tick: Tick, *, draws: int = DRAWS, only_soft: bool = False) -> Answers:
    """Show the evaluated part to the model in every way; each slide is read once.

    Args:
        only_soft: beside hard; neither random patches nor all.
    """
    ways = dict(_ways(run, draws, only_soft))
    samples = run.samples(run.part)
    rows: dict[str, list[list[Row]]] = {name: [[] for _ in models] for name, models in ways.items()}
    gates = []
    order = range(len(samples))
    ahead = read_ahead(samples, order, run.config.train.workers, lambda bag, _: bag)
    with torch.inference_mode(), closing(ahead) as reader:
        for done, (sample, bag) in enumerate(zip(samples.samples, reader, strict=True), 1):
            run.model.check_bag(bag)
            gates.append(slide_gates(run.selector, bag.to(run.model.device, run.model.dtype)))
            for name, models in ways.items():
                for model, own in zip(models, rows[name], strict=True):
                    own.append(row_of(sample, bag, run.part, run.task, model, model(bag)))
            tick(f"{run.name}, {run.part} slides", done, len(samples))
    found = {name: [at_level(run, one) for one in each] for name, each in rows.items()}
    return Answers(run, found, gates)


def _ways(run: OpenRun, draws: int, only_soft: bool) -> Iterator[tuple[str, list[SlideModel]]]:
    """By choice of patches, a model a draw."""
    model, selector = run.model, run.selector
    if not run.missing:
        yield SOFT, [choosing(model, softly(selector, draw)) for draw in range(draws)]
    yield HARD, [model]
    if not only_soft:
        yield RANDOM, [choosing(model, at_random(selector, seed)) for seed in range(draws)]
        yield FULL, [choosing(model, None)]
