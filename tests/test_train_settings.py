"""Settings, and the optimisers and learning rates that they name."""

import copy
import dataclasses
import itertools
from typing import Any

import pytest
import torch

from tests.toy_training import toy_model
from wsizoo.errors import SpecError
from wsizoo.train.config import (
    OptimiserConfig,
    ScheduleConfig,
    SelectionConfig,
    TrainConfig,
    load_config,
)
from wsizoo.train.lookahead import with_lookahead
from wsizoo.train.one_run import settings_of
from wsizoo.train.randomness import For, generator_for, seed_for
from wsizoo.train.schedules import lr_factor, make_optimiser, set_lr
from wsizoo.train.settings import TrainSettings


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"precision": "fp16"}, "precision is 'fp16', expected one of 32-true, bf16-mixed, 16-mi"),
        ({"optimiser": "lion"}, "optimiser is 'lion', expected one of adamw, adam, radam, sgd"),
        ({"schedule": "line"}, "schedule is 'line', expected one of cosine, constant, step"),
        ({"checkpoint": "first"}, "checkpoint is 'first', expected one of best, last"),
        (
            {"loggers": ("mlflow",)},
            "train.loggers names 'mlflow', expected some of tensorboard, wandb",
        ),
        ({"epochs": 0}, "epochs is 0, expected 1 or more"),
        ({"max_patches": 0}, "max_patches is 0, expected 1 or more"),
        ({"seed": -1}, "seed is -1, expected 0 or more"),
        ({"weight_decay": float("nan")}, "weight_decay is nan, expected 0 or more"),
        ({"lr": 0.0}, "lr is 0.0, expected more than 0"),
        ({"clip": -1.0}, "clip is -1.0, expected more than 0"),
        ({"betas": (0.9,)}, r"betas is \(0.9,\), expected two from 0 to below 1"),
        ({"betas": (0.9, 1.0)}, r"betas is \(0.9, 1.0\), expected two from 0 to below 1"),
        (
            {"schedule": "step"},
            r"falls is \(\), expected epochs from 1 on, and at least one with s",
        ),
        ({"falls": (0,)}, r"falls is \(0,\), expected epochs from 1 on, .* schedule.falls=\[100\]"),
        ({"fall_factor": -1.0}, "fall_factor is -1.0, expected 0 or more"),
        ({"min_epochs": 0}, "min_epochs is 0, expected 1 or more"),
        ({"ema": 1.0}, "ema is 1.0, expected a decay between 0 and 1, as 0.999"),
    ],
)
def test_a_value_without_a_meaning_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        TrainSettings(**changes)


def test_every_key_of_a_config_reaches_the_loop() -> None:
    loop = {
        "epochs": 3, "batch_size": 2, "accumulate": 4, "clip": 0.5, "precision": "bf16-mixed",
        "ema": 0.9, "patience": 7, "min_epochs": 2, "workers": 1, "device": "cpu", "max_patches": 5,
        "checkpoint_steps": 6, "loggers": ["wandb"],
    }  # fmt: skip
    asked = {
        "train": loop,
        "optimiser": {
            "name": "sgd", "lr": 0.25, "weight_decay": 0.5, "betas": [0.5, 0.75], "momentum": 0.3,
            "lookahead": 5,
        },
        "schedule": {
            "name": "step", "warmup_epochs": 1.5, "end_factor": 0.125, "falls": [2],
            "fall_factor": 0.75,
        },
        "selection": {"metric": "auc", "checkpoint": "last"},
    }  # fmt: skip
    found = settings_of(load_config({"model": "m", "data": {"table": "t"}, **asked}), seed=8)
    told = {key: value for group in asked.values() for key, value in group.items() if key != "name"}
    told |= {"seed": 8, "optimiser": "sgd", "schedule": "step", "falls": (2,)}
    told |= {"loggers": ("wandb",), "betas": (0.5, 0.75)}
    assert dataclasses.asdict(found) == told
    before = dataclasses.asdict(TrainSettings())
    assert [key for key, value in told.items() if value == before[key]] == []


def test_groups_of_a_config_share_no_key_of_the_loop() -> None:
    groups = (TrainConfig, OptimiserConfig, ScheduleConfig, SelectionConfig)
    keys = [one.name for group in groups for one in dataclasses.fields(group)]
    assert [key for key in keys if keys.count(key) > 1] == ["name", "name"]


def factors(**changes: Any) -> list[float]:
    settings = TrainSettings(epochs=4, **changes)
    return [lr_factor(settings, step, 5) for step in range(20)]


def test_the_cosine_is_that_of_torch() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 20, eta_min=0.1)
    expected = []
    for _ in range(20):
        expected.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    assert factors(end_factor=0.1) == pytest.approx(expected)


def test_steps_down_are_those_of_torch() -> None:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimiser, [1, 3], gamma=0.2)
    expected = []
    for _ in range(4):
        expected += 5 * theirs.get_last_lr()
        optimiser.step()
        theirs.step()
    assert factors(schedule="step", falls=(1, 3), fall_factor=0.2) == pytest.approx(expected)


def test_warming_up_is_linear_and_the_cosine_begins_after_it() -> None:
    found = factors(warmup_epochs=0.8)
    assert found[:5] == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert all(a > b > 0 for a, b in itertools.pairwise(found[4:]))
    assert factors(schedule="constant", warmup_epochs=0.4) == [0.5, *[1.0] * 19]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("radam", torch.optim.RAdam),
        ("sgd", torch.optim.SGD),
    ],
)
def test_optimisers_by_name(name: str, kind: type) -> None:
    settings = TrainSettings(
        optimiser=name, lr=0.5, weight_decay=0.1, betas=(0.5, 0.6), momentum=0.7
    )
    made = make_optimiser(toy_model(), settings)
    assert type(made) is kind
    assert [group["lr"] for group in made.param_groups] == [0.5, 0.05, 0.5, 0.5]
    group = made.param_groups[0]
    assert group["weight_decay"] == 0.1
    assert group["momentum"] == 0.7 if name == "sgd" else group["betas"] == (0.5, 0.6)
    set_lr(made, 0.1)
    set_lr(made, 0.5)
    assert [group["lr"] for group in made.param_groups] == [0.25, 0.025, 0.25, 0.25]


def test_lookahead_goes_half_of_the_way_and_its_state_is_the_optimiser_s() -> None:
    one, two = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    first, again = (with_lookahead(torch.optim.SGD, 2)([p], lr=1.0) for p in (one, two))

    def step(optimiser: Any, parameter: torch.Tensor) -> float:
        parameter.grad = -torch.ones(3)
        optimiser.step()
        return float(parameter.detach()[0])

    assert [step(first, one) for _ in range(5)] == [1, 2, 3, 3, 4]
    two.data.copy_(one)
    again.load_state_dict(copy.deepcopy(first.state_dict()))
    assert step(again, two) == step(first, one) == 4  # of 3 and 5
    made = make_optimiser(toy_model(), TrainSettings(optimiser="radam", lookahead=6))
    assert isinstance(made, torch.optim.RAdam)
    with pytest.raises(SpecError, match="lookahead is 0, expected 1 or more"):
        TrainSettings(lookahead=0)


def test_random_numbers_depend_on_the_place_alone() -> None:
    places = [(0, For.PASS, 1, 2), (0, For.PASS, 2, 1), (1, For.PASS, 1, 2), (0, For.READING, 1, 2)]
    assert len({seed_for(*place) for place in places}) == 4
    assert seed_for(*places[0]) == seed_for(*places[0])
    drawn = [torch.rand(3, generator=generator_for(*places[0])) for _ in range(2)]
    assert torch.equal(*drawn)
