"""Standardise: the training patches' mean and deviation, carried by the model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import wsizoo
from wsizoo.bag import Bag
from wsizoo.errors import DataError
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.standardise import Standardise, moments
from wsizoo.testing import conformance
from wsizoo.train.loop import fit

OVERRIDES = (
    "encoder={name: instances, dim: 3}",
    "aggregator={name: abmil, dim: 4, attention: 3, standardise: true}",
    "head.classes=[a,b]",
)


def bags(seed: int = 0) -> list[Bag]:
    random = torch.Generator().manual_seed(seed)
    scale, shift = torch.tensor([1.0, 100.0, 0.0]), torch.tensor([0.0, -1e4, 0.1])
    return [
        Bag(torch.randn(n, 3, generator=random) * scale + shift, target={"label": n % 2})
        for n in (3, 1, 40, 6)
    ]


@settings(deadline=None, max_examples=30)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    shift=st.floats(-1e6, 1e6),
    seed=st.integers(0, 99),
)
def test_moments_of_parts_are_those_of_the_whole(sizes: list[int], shift: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    parts = [torch.randn(n, 2, generator=random, dtype=torch.float64) + shift for n in sizes]
    n, mean, deviation = moments(parts)
    whole = torch.cat(parts)
    assert n == len(whole)
    torch.testing.assert_close(mean, whole.mean(0))
    spread = whole.std(0, correction=0)
    told = spread > 2 * torch.finfo(torch.float32).eps * mean.abs()  # else it may be said to be 1
    torch.testing.assert_close(deviation[told], spread[told], rtol=1e-6, atol=1e-9)


def test_training_features_get_mean_0_and_deviation_1_and_constant_ones_0() -> None:
    model, shown = wsizoo.build("abmil-uni", *OVERRIDES), bags()
    model.start_training(1, shown)
    (part,) = (m for m in model.modules() if isinstance(m, Standardise))
    found = part(torch.cat([bag.features for bag in shown]))
    torch.testing.assert_close(found.mean(0), torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(
        found.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), rtol=0, atol=1e-4
    )
    assert int(part.patches) == 50


def test_a_saved_model_carries_the_statistics_of_its_training_part(tmp_path: Path) -> None:
    model = wsizoo.build("abmil-uni", *OVERRIDES)
    fit(model, bags(), epochs=1)
    wsizoo.save(model, tmp_path / "model")
    again, other = wsizoo.load(tmp_path / "model"), bags(seed=1)[2]
    assert float(again.state_dict()["aggregator.standard.mean"][1]) == pytest.approx(-1e4, rel=0.01)
    assert torch.equal(again(other).logits, model(other).logits)


def test_training_on_features_that_were_not_measured_is_refused() -> None:
    model = wsizoo.build("abmil-uni", *OVERRIDES)
    model(bags()[0])
    with pytest.raises(DataError, match="has not seen those of the training part"):
        model.train()(bags()[0])


def test_nothing_is_read_where_nothing_is_standardised() -> None:
    class Unread(list[Bag]):
        def __iter__(self) -> Iterator[Bag]:
            raise AssertionError("read")

    wsizoo.build("abmil-uni", "head.classes=[a,b]").start_training(1, Unread(bags()))


def test_default_models_keep_the_names_of_their_tensors() -> None:
    names = set(wsizoo.build("abmil-uni", "head.classes=[a,b]").state_dict())
    parts = ("embed.0", "value", "gate", "score")
    expected = {f"aggregator.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    assert names == expected | {"head.linear.weight", "head.linear.bias"}


class Measured(ABMIL):
    """As after start_training."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, dim=16, attention=4, hidden=(8,), standardise=True)
        assert self.standard is not None
        self.standard.mean.fill_(0.3)
        self.standard.deviation.fill_(2.0)
        self.standard.patches.fill_(9)


@conformance(Measured)
def test_standardised_abmil_does_what_every_aggregator_must(check: Any) -> None:
    check()


def test_a_training_measures_its_training_part_alone_and_a_resumed_one_not_again(
    tmp_path: Path,
) -> None:
    pytest.importorskip("lightning_fabric")
    from wsizoo.train.trainer import TrainSettings, train_model

    settings = TrainSettings(epochs=1, workers=0, device="cpu")
    model = wsizoo.build("abmil-uni", *OVERRIDES)
    train_model(model, bags(), bags(seed=1), settings, tmp_path)
    expected = wsizoo.build("abmil-uni", *OVERRIDES)
    expected.start_training(1, bags())
    assert model.aggregator.standard.mean.equal(expected.aggregator.standard.mean)
    again = wsizoo.build("abmil-uni", *OVERRIDES)
    train_model(again, bags(seed=2), bags(seed=1), settings, tmp_path)
    assert again.aggregator.standard.mean.equal(model.aggregator.standard.mean)
