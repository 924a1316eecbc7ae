import random
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from wsizoo.bag import Bag
from wsizoo.errors import BagError, DataError, FingerprintError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead, RegressionHead
from wsizoo.model import SlideModel
from wsizoo.spec import ModelSpec
from wsizoo.train.loop import common_fingerprint, fit

SPEC = ModelSpec(summary="s", licence="MIT", source="x")
DIM = 6


def model(requires: Fingerprint | None = None, aggregator: Aggregator | None = None) -> SlideModel:
    torch.manual_seed(0)
    body = aggregator or ABMIL(DIM, 8, 4, dropout=0.5)
    head = ClassificationHead(body.out_dim, ("a", "b"))
    return SlideModel("m", SPEC, DIM, aggregator=body, head=head, requires=requires)


def bags(n: int = 6, encoder: Fingerprint | None = None) -> list[Bag]:
    generator = torch.Generator().manual_seed(3)
    made = []
    for i in range(n):
        features = torch.randn(7, DIM, generator=generator)
        features[:2, 0] += 3.0 * (i % 2)
        made.append(Bag(features, encoder=encoder, slide_id=f"s{i}", target={"label": i % 2}))
    return made


def state(made: SlideModel) -> list[Tensor]:
    return [tensor.clone() for tensor in made.state_dict().values()]


def test_the_loss_goes_down() -> None:
    history = fit(model(), bags(), epochs=30, lr=5e-3)
    assert len(history.losses) == 30
    assert history.losses[-1] < 0.5 * history.losses[0]


def test_every_slide_is_augmented_anew_with_the_progress_of_the_training() -> None:
    calls: list[tuple[str, float, float]] = []

    def augment(bag: Bag, generator: None, progress: float) -> Bag:
        drawn = float(torch.rand(()))
        calls.append((bag.slide_id, progress, drawn))
        return bag.replace(features=bag.features + drawn)

    given = bags(2)
    first = fit(model(), given, epochs=3, augment=augment).losses
    assert [(name, progress) for name, progress, _ in sorted(calls)] == [
        (name, epoch / 3) for name in ("s0", "s1") for epoch in range(3)
    ]
    assert len({drawn for _, _, drawn in calls}) == 6
    assert torch.equal(given[0].features, bags(2)[0].features)
    assert fit(model(), given, epochs=3, augment=augment).losses == first
    assert fit(model(), given, epochs=3).losses != first


def test_one_seed_gives_one_result_and_another_another() -> None:
    results = []
    for seed in (0, 0, 1):
        made = model()
        torch.rand(seed + 3)  # the state outside is another each time
        losses = fit(made, bags(), epochs=3, seed=seed).losses
        results.append((losses, state(made)))
    assert results[0][0] == results[1][0] != results[2][0]
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_the_random_states_outside_are_left_as_they_were() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    python, numbers = random.getstate(), str(numpy.random.get_state())
    fit(model_of_state(before), bags(), epochs=2)
    assert torch.equal(torch.get_rng_state(), before)
    assert random.getstate() == python
    assert str(numpy.random.get_state()) == numbers


def model_of_state(wanted: Tensor) -> SlideModel:
    """A model, with the random state put back to what it was before it was made."""
    made = model()
    torch.set_rng_state(wanted)
    return made


def test_the_model_is_left_in_eval_mode_and_counts_as_trained() -> None:
    made = model()
    fit(made, bags(), epochs=1)
    assert not made.training and made.trained


def test_an_epoch_is_reported_when_it_is_over() -> None:
    told: list[Any] = []
    history = fit(model(), bags(), epochs=3, after_epoch=lambda *args: told.append(args))
    assert told == [(i + 1, loss) for i, loss in enumerate(history.losses)]


class Poisoned(Aggregator):
    """Gives NaN for one slide."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)

    def forward(self, bag: Bag) -> Aggregated:
        factor = float("nan") if bag.slide_id == "s3" else 1.0
        return Aggregated(bag.features.mean(0) * factor)


def test_a_loss_that_is_not_a_number_names_the_slide() -> None:
    made = model(aggregator=Poisoned())
    with pytest.raises(DataError, match="the loss of slide 's3' is nan"):
        fit(made, bags(), epochs=1)
    assert not made.training and not made.trained
    assert all(torch.isfinite(tensor).all() for tensor in state(made))


def test_a_target_that_is_not_a_number_names_the_slide() -> None:
    head = RegressionHead(DIM)
    made = SlideModel("m", SPEC, DIM, aggregator=Poisoned(), head=head)
    with pytest.raises(DataError, match="the loss of slide 's0' is nan"):
        fit(made, [bags(1)[0].replace(target={"value": float("nan")})])


def test_a_slide_without_patches_is_named() -> None:
    empty = Bag(torch.zeros(0, DIM), slide_id="s9", target={"label": 0})
    with pytest.raises(BagError, match="slide 's9' has no patches"):
        fit(model(), [empty])


def test_the_model_then_requires_what_it_was_trained_on() -> None:
    made, uni = model(), Fingerprint("uni", mpp=0.5)
    fit(made, bags(encoder=uni), epochs=1)
    assert made.requires == uni


def test_bags_without_a_fingerprint_change_no_requirement() -> None:
    made = model(Fingerprint("uni"))
    fit(made, bags(), epochs=1)
    assert made.requires == Fingerprint("uni")


def test_bags_of_another_encoder_than_the_model_s_are_refused() -> None:
    with pytest.raises(
        FingerprintError, match="'m' was made for uni features; slide 's0' was encoded with conch"
    ):
        fit(model(Fingerprint("uni")), bags(encoder=Fingerprint("conch")))


def test_bags_of_different_encoders_are_refused_before_any_step() -> None:
    made = model()
    before = state(made)
    mixed = [*bags(2, Fingerprint("uni", mpp=0.5)), *bags(1, Fingerprint("uni", mpp=1.0))]
    with pytest.raises(
        FingerprintError,
        match=r"slide 's0' and slide 's0' were encoded differently: mpp 0\.5 and 1",
    ):
        fit(made, mixed)
    assert all(torch.equal(a, b) for a, b in zip(before, state(made), strict=True))


def test_every_bag_and_the_entry_state_what_is_then_required() -> None:
    made = model(Fingerprint("uni", patch_size=256))
    stated = [Fingerprint("uni", revision="r1"), Fingerprint("uni", mpp=0.5, declared=True)]
    fit(made, [*bags(2, stated[0]), *bags(2, stated[1])], epochs=1)
    assert made.requires == Fingerprint("uni", "r1", mpp=0.5, patch_size=256, declared=True)


def test_each_bag_is_compared_with_all_others() -> None:
    stated = [Fingerprint("uni"), Fingerprint("uni", mpp=0.5), Fingerprint("uni", mpp=1.0)]
    mixed = [bag for i, one in enumerate(stated) for bag in bags(i + 1, one)[i:]]
    with pytest.raises(FingerprintError, match=r"slide 's1' and slide 's2' were encoded diff"):
        common_fingerprint(model(), mixed)


def test_a_bag_of_unknown_make_among_known_ones_is_named() -> None:
    mixed = [*bags(1, Fingerprint("uni")), *bags(3)[2:]]
    told = r"slide 's2' states no encoder, slide 's0' states uni: .* in a run data\.encoder=NAME"
    with pytest.raises(DataError, match=told):
        fit(model(), mixed)


def test_a_training_that_fails_changes_no_requirement() -> None:
    made = model(Fingerprint("uni"), Poisoned())
    with pytest.raises(DataError, match="the loss of slide 's3' is nan"):
        fit(made, bags(encoder=Fingerprint("uni", mpp=0.5)), epochs=1)
    assert made.requires == Fingerprint("uni")


def test_no_bags_are_an_error() -> None:
    with pytest.raises(DataError, match="There are no bags to train on"):
        common_fingerprint(model(), [])
