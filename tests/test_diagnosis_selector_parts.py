"""Gates, random patches, probes and the verdict: numbers that are known."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.soft_selectors import Toy, registry, write_needles
from tests.test_diagnosis_selector import nothing, opened, train
from wsizoo.bag import Bag
from wsizoo.diagnosis.selector_answers import generator_of, random_rows
from wsizoo.diagnosis.selector_gates import (
    SlideGates,
    alike,
    effective_number,
    entropy,
    most_entropy,
    overlap,
    slide_gates,
)
from wsizoo.diagnosis.selector_probes import DROPPED, FULL, KEPT, LEAK, RANDOM, probe_patches
from wsizoo.diagnosis.selector_run import OpenRun
from wsizoo.diagnosis.selector_verdict import judge
from wsizoo.measures.compare import Difference


def test_hard_gates_have_no_entropy_and_lie_on_the_kept_patches() -> None:
    gates = torch.tensor([0.0, 1, 0, 1, 1, 0], dtype=torch.float64)
    kept = torch.tensor([1, 3, 4])
    assert overlap(gates, kept, 3) == 1 and entropy(gates, 1 - gates, 3) == 0
    assert effective_number(gates) == pytest.approx(3)


def test_equal_gates_have_the_most_entropy() -> None:
    gates = torch.full((40,), 0.1, dtype=torch.float64)
    assert overlap(gates, torch.arange(4), 4) == pytest.approx(0.1)
    expected = -40 * (0.1 * math.log2(0.1) + 0.9 * math.log2(0.9)) / 4
    assert entropy(gates, 1 - gates, 4) == pytest.approx(expected)
    assert most_entropy(40, 4) == pytest.approx(expected)
    assert effective_number(gates) == pytest.approx(40)
    assert most_entropy(4, 4) == 0


def test_colder_gates_are_harder() -> None:
    torch.manual_seed(0)
    selector = Toy(8).eval()
    with torch.no_grad():
        found = slide_gates(selector, Bag(torch.randn(50, 8), slide_id="s"))
    overlaps, entropies = zip(*found.warmer, strict=True)
    assert list(overlaps) == sorted(overlaps, reverse=True)
    assert list(entropies) == sorted(entropies)
    assert (found.n, found.k, len(found.kept), len(found.largest)) == (50, 4, 4, 12)
    assert found.largest[0] == max(found.largest) and sum(found.largest) <= 4 + 1e-5
    assert found.overlap == pytest.approx(sum(found.largest[:4]) / 4, abs=1e-6)


def gates_of(slide: str, n: int, kept: list[int]) -> SlideGates:
    return SlideGates(slide, n, len(kept), np.array(kept), 1.0, 0.0, 1.0, (), ())


def test_runs_are_as_alike_as_the_sets_that_they_keep() -> None:
    one = [gates_of("a", 10, [0, 1]), gates_of("b", 10, [2, 3]), gates_of("c", 10, [0, 1])]
    two = [gates_of("b", 10, [2, 3]), gates_of("a", 10, [1, 2]), gates_of("c", 11, [0, 1])]
    found = alike([one, two])
    assert found is not None
    assert found.jaccard == pytest.approx((1 / 3 + 1) / 2)
    assert found.chance == pytest.approx(0.4 / 3.6)
    assert (found.runs, found.slides) == (2, 2), "c is another bag"
    assert alike([one]) is None and alike([one, [gates_of("d", 10, [0])]]) is None


def test_random_patches_are_those_of_slide_and_seed() -> None:
    first = random_rows(100, 7, 0, "s0")
    assert torch.equal(first, random_rows(100, 7, 0, "s0")) and len(first.unique()) == 7
    assert torch.equal(first, first.sort().values)
    assert not torch.equal(first, random_rows(100, 7, 1, "s0"))
    assert not torch.equal(first, random_rows(100, 7, 0, "s1"))
    draws = [torch.randn(2, generator=generator_of(seed, "s0"))[0].item() for seed in range(4)]
    assert len(set(draws)) == 4


@pytest.fixture
def needles(tmp_path: Path) -> OpenRun:
    """A run whose selector is made to know the needles, of which all are kept."""
    write_needles(tmp_path, slides=40)
    run = opened(train(tmp_path, epochs=1))
    with torch.no_grad():
        run.selector.line.weight.zero_()
        run.selector.line.weight[0, 0] = 1.0
    return run


def test_nothing_is_left_where_all_needles_are_kept(needles: OpenRun) -> None:
    found = probe_patches(needles, 300, registry(), nothing)
    values = {kind: one.value for kind, one in found.measured.items()}
    assert values[FULL] > 0.9 and values[KEPT] > 0.9 and values[RANDOM] > 0.8, values
    assert values[DROPPED] < 0.8 and values[LEAK] < 0.8, values
    left, random = found.left(), found.left(RANDOM)
    assert left is not None and random is not None and left < 0.5 < random
    assert found.chance == pytest.approx(0.5, abs=0.1) and found.notes == ()


def test_a_leak_past_the_gates_is_seen(needles: OpenRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(self, bag, generator=None, temperature=None, gates=None):
        return self.warm(bag)

    monkeypatch.setattr(Toy, "soft", leaking)
    found = probe_patches(needles, 300, registry(), nothing)
    assert found.measured[LEAK].low > found.chance


def diff(value: float, low: float, high: float, a: float = 0.9) -> Difference:
    return Difference(a, a - value, value, low, high, 0.5, 100)


BETTER, SAME = diff(0.3, 0.2, 0.4), diff(0.0, -0.01, 0.01)
JUDGED = {
    "transfers": (SAME, 0.85, BETTER, SAME),
    "at the bounds": (diff(-0.02, -0.02, 0.02), 0.8, BETTER, SAME),
    "fails": (diff(-0.05, -0.08, -0.02), 0.95, BETTER, diff(-0.05, -0.1, 0)),
    "soft is lower": (diff(0.5, 0.4, 0.6), 0.9, BETTER, SAME),
    "both are lower": (diff(0.5, 0.4, 0.6), 0.9, BETTER, diff(-0.2, -0.3, -0.1)),
    "wide": (diff(-0.01, -0.1, 0.1), 0.9, BETTER, SAME),
    "warm": (SAME, 0.5, BETTER, SAME),
    "random": (SAME, 0.9, diff(0.01, -0.01, 0.03), SAME),
    "no soft": (None, 0.9, BETTER, SAME),
    "undefined": (diff(math.nan, math.nan, math.nan), 0.9, diff(*[math.nan] * 3), SAME),
}
HEADLINES = {
    "transfers": "transfers",
    "at the bounds": "transfers",
    "fails": "does not transfer",
    "soft is lower": "transfers, soft path unreliable",
    "both are lower": "not decided",
    "wide": "not decided",
    "warm": "not decided",
    "random": "transfers; selector not better than random",
    "no soft": "not measured",
    "undefined": "not measured",
}


@pytest.mark.parametrize("case", JUDGED)
def test_the_verdict_goes_by_rule(case: str) -> None:
    found = judge(*JUDGED[case], patients=50)
    assert found.headline == HEADLINES[case] and all(text.endswith(".") for text in found.told)


def test_a_threshold_that_does_not_fit_is_told_apart_from_a_loss() -> None:
    gap = diff(-0.2, -0.3, -0.1)
    assert "selector.tune=0.1" in " ".join(judge(gap, 0.9, BETTER, gap, 50, "slides", SAME).told)
    assert "selector.tune" not in " ".join(judge(gap, 0.9, BETTER, gap, 50, "slides", gap).told)


def test_an_interval_without_width_says_what_it_leaves_open() -> None:
    told = " ".join(judge(diff(0, 0, 0), 0.9, BETTER, SAME, 16, "slides").told)
    assert "all resamples of 16 slides" in told and "up to 21 % of others" in told
