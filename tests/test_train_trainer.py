import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.toy_training import DIM, SPEC, ToySlides, measure, toy_model, train_toy
from wsizoo.bag import Bag, BagBatch
from wsizoo.errors import BagError, DataError, FingerprintError
from wsizoo.fingerprint import Fingerprint
from wsizoo.interfaces import Aggregated, Aggregator
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead
from wsizoo.model import SlideModel
from wsizoo.train.loop import fit, loss_of
from wsizoo.train.settings import TrainSettings
from wsizoo.train.trainer import train_model

pytest.importorskip("lightning_fabric")

PLAIN = TrainSettings(
    epochs=2, lr=1e-2, weight_decay=0.0, schedule="constant", checkpoint="last", workers=0
)


def plain_model() -> SlideModel:
    """Without anything random in a pass; several slides go through it in one."""
    torch.manual_seed(0)
    body = ABMIL(DIM, 8, 4, dropout=0.0)
    return SlideModel("m", SPEC, DIM, aggregator=body, head=ClassificationHead(8, ("a", "b")))


def trained_plainly(folder: Path, count: int = 6, **changes: Any) -> dict[str, Tensor]:
    model = plain_model()
    train_model(model, ToySlides(count), None, replace(PLAIN, **changes), folder)
    return model.state_dict()


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], msg=lambda told, name=name: f"{name}: {told}")


def test_the_loss_goes_down_and_the_best_epoch_is_kept(tmp_path: Path) -> None:
    model, val, told = plain_model(), ToySlides(4, seed=1), []
    settings = TrainSettings(epochs=12, lr=3e-2)
    trained = train_model(model, ToySlides(8), val, settings, tmp_path, say=told.append)
    losses = [row["val_loss"] for row in trained.history]
    assert trained.history[-1]["train_loss"] < 0.5 * trained.history[0]["train_loss"]
    assert trained.epoch == trained.best_epoch == 1 + losses.index(min(losses))
    with torch.no_grad():
        now = float(torch.stack([loss_of(model, [bag]) for bag in val]).mean())
    assert now == pytest.approx(min(losses), rel=1e-5)
    assert not model.training and model.trained
    assert model.requires == Fingerprint("uni")
    assert len(told) == 12 and told[0].startswith("epoch 1/12  lr 0.0296  train_loss 0.")


def test_the_last_epoch_is_kept_where_that_is_asked_for(tmp_path: Path) -> None:
    model = plain_model()
    trained = train_model(model, ToySlides(5), None, PLAIN, tmp_path)
    assert (trained.epoch, trained.best_epoch, trained.stopped_early) == (2, None, False)
    assert not (tmp_path / "checkpoints" / "best.ckpt").exists()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert_close(model.state_dict(), last["stepper"]["model"])


def test_packed_slides_equal_accumulated_ones(tmp_path: Path) -> None:
    """Also in the last step of an epoch, which has 1 of 3 slides."""
    packed = trained_plainly(tmp_path / "packed", 7, batch_size=3, optimiser="sgd")
    added = trained_plainly(tmp_path / "added", 7, accumulate=3, optimiser="sgd")
    assert_close(packed, added)
    alone = trained_plainly(tmp_path / "alone", 7, optimiser="sgd")
    assert not torch.allclose(alone["head.linear.weight"], added["head.linear.weight"])


def test_one_step_is_that_of_the_optimiser_on_the_mean_loss(tmp_path: Path) -> None:
    """Of three slides: two packed, and one that is left."""
    model, slides = plain_model(), ToySlides(3)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.stack([loss_of(model.train(), [bag]) for bag in slides]).mean().backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    optimiser.step()
    changes = {"epochs": 1, "accumulate": 2, "batch_size": 2, "lr": 0.1, "clip": 0.05}
    assert_close(trained_plainly(tmp_path, 3, optimiser="sgd", **changes), model.state_dict())


def test_one_seed_gives_one_result_and_another_another(tmp_path: Path) -> None:
    states = []
    for i, seed in enumerate((0, 0, 1)):
        model = toy_model()
        torch.rand(i + 3)  # the state outside is another each time
        train_toy(tmp_path / str(i), ToySlides(4), model=model, settings=replace(PLAIN, seed=seed))
        states.append(model.state_dict())
    assert all(torch.equal(tensor, states[1][name]) for name, tensor in states[0].items())
    assert not torch.equal(states[0]["aggregator.teacher"], states[2]["aggregator.teacher"])


@pytest.mark.parametrize("workers", [1, 3])
def test_threads_change_no_number(tmp_path: Path, workers: int) -> None:
    settings = replace(PLAIN, max_patches=6)
    for count in (0, workers):
        folder = tmp_path / str(count)
        train_toy(folder, ToySlides(6), settings=replace(settings, workers=count))
    both = [(tmp_path / str(count) / "epochs.csv").read_bytes() for count in (0, workers)]
    assert both[0] == both[1]


def test_the_random_states_outside_are_left_as_they_were(tmp_path: Path) -> None:
    model = toy_model()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    train_toy(tmp_path, ToySlides(3), model=model, settings=PLAIN)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_augmentation_is_told_how_far_the_training_is(tmp_path: Path) -> None:
    seen: list[tuple[str, float, float]] = []

    def augment(bag: Bag, generator: torch.Generator, progress: float) -> Bag:
        seen.append((bag.slide_id, progress, float(torch.rand((), generator=generator))))
        return bag

    train_model(plain_model(), ToySlides(3), None, PLAIN, tmp_path, augment=augment)
    assert [name for name, progress, _ in sorted(seen) if progress == 0] == ["s0", "s1", "s2"]
    assert {progress for _, progress, _ in seen} == {0.0, 0.5}
    assert len({drawn for _, _, drawn in seen}) == 6


def test_sampled_patches_are_other_ones_each_epoch(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    def augment(bag: Bag, generator: torch.Generator, progress: float) -> Bag:
        seen.append(bag.coords[:, 0])
        return bag

    settings = replace(PLAIN, max_patches=4)
    train_model(plain_model(), ToySlides(1), None, settings, tmp_path, augment=augment)
    assert [len(rows) for rows in seen] == [4, 4]
    assert all(torch.equal(rows, rows.sort().values) for rows in seen)
    assert not torch.equal(*seen)


def test_the_mean_of_the_weights_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    weights: list[Tensor] = []

    def watch(model: SlideModel, notes: Sequence[Any]) -> dict[str, float]:
        weights.append(model.state_dict()["head.linear.weight"].clone())
        return {}

    model = plain_model()
    settings = replace(PLAIN, ema=0.75, epochs=3)
    train_model(model, ToySlides(1), None, settings, tmp_path / "mean", measure=watch)
    mean, weights[:] = list(weights), []
    train_model(
        plain_model(), ToySlides(1), None, replace(PLAIN, epochs=3), tmp_path / "raw", measure=watch
    )
    expected = weights[0]
    for i in range(3):
        expected = torch.lerp(weights[i], expected, 0.75) if i else expected
        torch.testing.assert_close(mean[i], expected)
    assert torch.equal(model.state_dict()["head.linear.weight"], mean[-1])


def test_training_stops_when_nothing_gets_better(tmp_path: Path) -> None:
    values = iter([0.5, 0.7, 0.6, 0.7, 0.9])

    def falling(model: SlideModel, notes: Sequence[Any]) -> dict[str, float]:
        return {"auc": next(values)}

    settings = replace(PLAIN, epochs=9, patience=2, metric="auc", checkpoint="best")
    trained = train_model(plain_model(), ToySlides(3), None, settings, tmp_path, measure=falling)
    assert [row["val_auc"] for row in trained.history] == [0.5, 0.7, 0.6, 0.7]
    assert (trained.best_epoch, trained.epoch, trained.stopped_early) == (2, 2, True)


def test_patience_ends_nothing_before_the_least_number_of_epochs(tmp_path: Path) -> None:
    settings = replace(PLAIN, epochs=9, patience=1, min_epochs=4, metric="auc", checkpoint="best")
    values = iter([0.5, 0.4, 0.4, 0.3, 0.9])
    measure: Any = lambda *_: {"auc": next(values)}  # noqa: E731
    trained = train_model(plain_model(), ToySlides(3), None, settings, tmp_path, measure=measure)
    assert (len(trained.history), trained.best_epoch, trained.stopped_early) == (4, 1, True)


def test_of_an_error_less_is_better(tmp_path: Path) -> None:
    values = iter([0.5, 0.3, 0.4])
    settings = replace(PLAIN, epochs=3, metric="mae", checkpoint="best")
    trained = train_model(
        plain_model(),
        ToySlides(2),
        None,
        settings,
        tmp_path,
        measure=lambda *_: {"mae": next(values)},
    )
    assert trained.best_epoch == 2


def test_the_bar_ends_at_all_slides_of_all_epochs(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    settings = replace(PLAIN, batch_size=2)
    train_model(
        plain_model(), ToySlides(3), None, settings, tmp_path, tick=lambda *args: told.append(args)
    )
    assert told == [(2, 6), (3, 6), (5, 6), (6, 6)]


def test_a_task_loss_replaces_that_of_the_head(tmp_path: Path) -> None:
    def loss(raw: Tensor, targets: Any) -> Tensor:
        return raw.square().mean() * 0 + 7.0

    trained = train_model(
        plain_model(), ToySlides(3), ToySlides(2), PLAIN, tmp_path, task_loss=loss
    )
    assert trained.history[0]["train_loss"] == trained.history[0]["val_loss"] == 7.0


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_the_precision_is_what_was_asked_for(tmp_path: Path, precision: str) -> None:
    seen: set[torch.dtype] = set()

    def loss(raw: Tensor, targets: Any) -> Tensor:
        seen.add(raw.dtype)
        return nn.functional.cross_entropy(raw, targets["label"])

    settings = replace(PLAIN, precision=precision)
    model = plain_model()
    train_model(model, ToySlides(2), None, settings, tmp_path, task_loss=loss)
    assert seen == {torch.bfloat16 if precision == "bf16-mixed" else torch.float32}
    assert model.dtype == torch.float32


def test_a_bad_loss_names_the_slide(tmp_path: Path) -> None:
    train_toy(tmp_path, ToySlides(4), settings=PLAIN)
    kept = (tmp_path / "checkpoints" / "last.ckpt").read_bytes()
    longer = replace(PLAIN, epochs=2)
    assert longer == PLAIN
    bad = toy_model(poisoned="s3")
    with pytest.raises(DataError, match="the loss of slide 's3' is nan, in epoch 1; no checkpoint"):
        train_toy(tmp_path / "bad", ToySlides(4), settings=PLAIN, model=bad)
    assert not bad.training and not bad.trained
    assert all(torch.isfinite(tensor).all() for tensor in bad.state_dict().values())
    assert (tmp_path / "checkpoints" / "last.ckpt").read_bytes() == kept


def test_of_packed_slides_all_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the loss of one of slides 's[03]', 's[03]' is nan"):
        train_toy(
            tmp_path, Only(0, 3), settings=replace(PLAIN, batch_size=2), model=toy_model("s3")
        )


class Only(ToySlides):
    """Two of the slides."""

    def __init__(self, *kept: int) -> None:
        super().__init__(1 + max(kept))
        self.kept = kept

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, index: int) -> Bag:
        return super().__getitem__(self.kept[index])


def test_a_bad_validation_loss_names_the_slide(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the validation loss of slide 's2' is nan"):
        train_toy(tmp_path, ToySlides(2), settings=PLAIN, model=toy_model("s2"))


class Steep(Aggregator):
    """A finite value with an infinite gradient."""

    def __init__(self) -> None:
        super().__init__(DIM, DIM)
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0) + (self.scale * 1.0).sqrt())


def test_a_bad_gradient_names_the_slides_and_changes_nothing(tmp_path: Path) -> None:
    head = ClassificationHead(DIM, ("a", "b"))
    model = SlideModel("m", SPEC, DIM, aggregator=Steep(), head=head)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match=r"the gradient of slide 's0' is (inf|nan), in epoch 1"):
        train_model(model, ToySlides(1), None, PLAIN, tmp_path)
    assert_close(model.state_dict(), before)


def test_nothing_to_choose_by_is_said_before_training(tmp_path: Path) -> None:
    def run(**changes: Any) -> None:
        settings = replace(PLAIN, checkpoint="best", **changes)
        train_model(plain_model(), ToySlides(2), None, settings, tmp_path)

    with pytest.raises(DataError, match="no validation slides to choose the best epoch by"):
        run()
    with pytest.raises(DataError, match="Nothing measures 'auc' to choose the best epoch by"):
        run(metric="auc")
    assert list(tmp_path.iterdir()) == []


def test_a_metric_that_is_not_measured_or_not_a_number_is_an_error(tmp_path: Path) -> None:
    settings = replace(PLAIN, checkpoint="best", metric="auc")
    with pytest.raises(DataError, match="No 'auc' to choose the best epoch by; measured: loss, we"):
        train_toy(tmp_path / "a", ToySlides(2), settings=settings)
    with pytest.raises(DataError, match="val_auc is nan after epoch 1, so no epoch is the best"):
        train_toy(
            tmp_path / "b",
            ToySlides(2),
            settings=settings,
            measure=lambda *_: {"auc": float("nan")},
        )


def test_no_slides_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no slides to train on"):
        train_model(plain_model(), ToySlides(0), None, PLAIN, tmp_path)


def test_slides_of_another_encoder_are_refused(tmp_path: Path) -> None:
    model = toy_model(requires=Fingerprint("conch"))
    with pytest.raises(FingerprintError, match="'toy' was made for conch features; slide 's"):
        train_toy(tmp_path, ToySlides(2), settings=PLAIN, model=model)


class Mixed(ToySlides):
    """Slides of two encoders."""

    def __getitem__(self, index: int) -> Bag:
        made = Fingerprint("uni", mpp=0.5 if index else 1.0)
        return super().__getitem__(index).replace(encoder=made)


def test_slides_of_two_encoders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FingerprintError, match=r"slide 's[01]' and slide 's[01]' were encoded diff"
    ):
        train_toy(tmp_path, Mixed(2), settings=PLAIN)


class Empty(ToySlides):
    """Slides without patches."""

    def __getitem__(self, index: int) -> Bag:
        return super().__getitem__(index).subset(torch.zeros(0, dtype=torch.int64))


def test_a_slide_without_patches_is_named(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="slide 's0' has no patches"):
        train_model(plain_model(), Empty(1), None, PLAIN, tmp_path)


def test_a_model_without_anything_to_train_is_an_error(tmp_path: Path) -> None:
    model = plain_model().requires_grad_(False)
    with pytest.raises(DataError, match="'m' has no parameters to train: all are frozen"):
        train_model(model, ToySlides(1), None, PLAIN, tmp_path)


def test_what_measures_may_move_nothing(tmp_path: Path) -> None:
    """`measure` is called in eval mode and gives columns of the table."""
    modes: list[bool] = []

    def watch(model: SlideModel, notes: Sequence[Any]) -> dict[str, float]:
        modes.append(model.training)
        return measure(model, notes)

    train_toy(tmp_path, ToySlides(2), settings=PLAIN, measure=watch)
    assert modes == [False, False]
    assert (tmp_path / "epochs.csv").read_text().startswith("epoch,lr,train_loss,val_loss,val_w")


def test_the_small_loop_and_this_one_take_the_same_step(tmp_path: Path) -> None:
    one, other = plain_model(), plain_model()
    fit(one, list(ToySlides(1)), epochs=3, lr=1e-2, weight_decay=0.0)
    train_model(other, ToySlides(1), None, replace(PLAIN, epochs=3), tmp_path)
    assert_close(one.state_dict(), other.state_dict())


def test_a_packed_pass_is_the_mean_of_its_slides() -> None:
    model, slides = plain_model(), list(ToySlides(3))
    together = loss_of(model, slides)
    alone = torch.stack([loss_of(model, [bag]) for bag in slides]).mean()
    torch.testing.assert_close(together, alone)
    assert len(BagBatch.pack(slides)) == 3
