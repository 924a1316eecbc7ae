"""wsizoo.train.making: what is stated, what the data decides, and what contradicts itself."""

import types
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
import yaml

import wsizoo
from tests.toy_cohort import RECORD, write_config
from wsizoo.errors import NotFoundError, SpecError
from wsizoo.plugins import discover
from wsizoo.registry import Registry, default
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.making import classes_of, make_model, spec_of, task_loss_of, task_of


def asked(cohort: Path, *overrides: str, task: str = "classification") -> RunConfig:
    return load_config(write_config(cohort, task), overrides)


def cohort_of(config: RunConfig) -> Cohort:
    task, classes = task_of(config, default()), classes_of(config, default())
    return read_cohort(config.data, task, classes)


def made(config: RunConfig, seed: int = 0) -> wsizoo.SlideModel:
    return make_model(config, cohort_of(config), range(8), seed, default())


def test_the_labels_of_the_table_are_the_classes(cohort: Path) -> None:
    assert made(asked(cohort)).classes == ["benign", "malign"]


def test_stated_classes_keep_their_order(cohort: Path) -> None:
    for stated in ("data.classes=[malign,benign]", "overrides=['head.classes=[malign,benign]']"):
        assert made(asked(cohort, stated)).classes == ["malign", "benign"]


def test_classes_of_an_entrys_own_weights_do_not_count(cohort: Path) -> None:
    config = asked(cohort, "model=abmil-demo", "overrides=['encoder={name: toy, dim: 8}']")
    assert spec_of(config, default()).classes == ["normal", "tumour"]
    assert made(config).classes == ["benign", "malign"]


def test_two_statements_of_classes_must_agree(cohort: Path) -> None:
    config = asked(cohort, "data.classes=[a,b]", "overrides=['head.classes=[b,a]']")
    with pytest.raises(
        SpecError, match=r"data.classes is \['a', 'b'\], head.classes in overrides \['b', 'a'\]"
    ):
        classes_of(config, default())


def test_classes_of_patches_must_be_named(cohort: Path) -> None:
    config = asked(cohort, "data.classes=null", task="segmentation")
    with pytest.raises(SpecError, match=r"say which classes they are.* data\.classes=\[normal,tum"):
        classes_of(config, default())


def test_a_seed_is_that_of_the_weights(cohort: Path) -> None:
    one, same, other = (made(asked(cohort), seed) for seed in (1, 1, 2))
    weights = [model.inference_state()["head.linear.weight"] for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_a_saved_models_composition_is_trained_anew(cohort: Path, tmp_path: Path) -> None:
    saved = wsizoo.save(made(asked(cohort)), tmp_path / "saved")
    again = made(asked(cohort, f"model={saved}"))
    assert [type(part).__name__ for _, part in again.parts()] == ["ABMIL", "ClassificationHead"]
    assert not again.trained


def test_a_model_that_is_no_model(cohort: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"No model named 'abmill-uni'"):
        task_of(asked(cohort, "model=abmill-uni"), default())
    with pytest.raises(SpecError, match=r"the model's file '.*none.yaml' cannot be read"):
        task_of(asked(cohort, f"model={tmp_path / 'none.yaml'}"), default())


def test_a_model_without_a_head_needs_one(cohort: Path) -> None:
    config = asked(cohort, "overrides=['head=null']")
    with pytest.raises(
        SpecError, match=r"toy.yaml' has no head, so its task is not known. Give it"
    ):
        task_of(config, default())
    told = asked(cohort, "overrides=['head=null']", "data.task=survival")
    assert task_of(told, default()) == "survival"


def test_the_task_is_the_heads(cohort: Path) -> None:
    assert task_of(asked(cohort, task="survival"), default()) == "survival"
    with pytest.raises(
        SpecError, match=r"data.task is regression, the head 'classification' of '.*' is of classif"
    ):
        task_of(asked(cohort, "data.task=regression"), default())


def test_edges_that_the_head_states_stay(cohort: Path) -> None:
    config = asked(cohort, "overrides=['head.edges=[4.0]']", task="survival")
    assert made(config).head.edges == (4.0,)


def test_bins_are_those_of_the_data(cohort: Path) -> None:
    assert made(asked(cohort, "data.bins=2", task="survival")).head.n_outputs == 2
    config = asked(cohort, "overrides=['head.bins=3']", task="survival")
    with pytest.raises(SpecError, match=r"come from data.bins: leave out head.bins=3 of overrides"):
        made(config)


def test_a_head_without_bins_gets_none(cohort: Path) -> None:
    config = asked(cohort, "overrides=['head=cox']", task="survival")
    assert not hasattr(made(config).head, "edges")


def test_inverse_weights_are_those_of_the_training_part(cohort: Path) -> None:
    config = asked(cohort, "train.class_weights=inverse")
    read = cohort_of(config)
    rows = [0, 2, 4, 1]  # three benign, one malign
    loss = task_loss_of(config, read, rows)
    assert loss is not None
    raw, label = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])
    each = torch.nn.functional.cross_entropy(raw, label, reduction="none")
    weights = torch.tensor([2 / 3, 2.0])  # (3 * 2/3 + 1 * 2) / 4 = 1
    torch.testing.assert_close(loss(raw, {"label": label}), (weights * each).mean())
    torch.testing.assert_close(loss(raw[1:], {"label": label[1:]}), 2 * each[1])  # alone
    unknown = torch.tensor([0, -1])
    torch.testing.assert_close(loss(raw, {"label": unknown}), 2 / 3 * each[0])
    assert task_loss_of(asked(cohort), read, rows) is None


def test_weights_and_smoothing_work_together(cohort: Path) -> None:
    config = asked(cohort, "train.class_weights=inverse", "train.label_smoothing=0.2")
    loss = task_loss_of(config, cohort_of(config), [0, 2, 4, 1])
    assert loss is not None
    raw, label = torch.tensor([[2.0, 0.5]]), torch.tensor([1])
    smooth = torch.nn.functional.cross_entropy(raw, label, label_smoothing=0.2)
    torch.testing.assert_close(loss(raw, {"label": label}), 2 * smooth)


@pytest.mark.parametrize("option", ["train.class_weights=inverse", "train.label_smoothing=0.1"])
def test_one_question_a_class_has_neither_weights_nor_smoothing(cohort: Path, option: str) -> None:
    config = asked(cohort, option, "overrides=['head.one_logit=true']")
    head = made(config).head
    with pytest.raises(SpecError, match=r"this head asks one question a class. Leave them out, or"):
        task_loss_of(config, cohort_of(config), [0, 1], head)


class Whole(wsizoo.WholeModel):
    """A whole model with classes."""

    def __init__(self, in_dim: int, classes: Sequence[str]) -> None:
        super().__init__()
        self.linear, self.classes = torch.nn.Linear(in_dim, len(classes)), tuple(classes)

    def forward(self, bag: wsizoo.Bag) -> wsizoo.SlideOutput:
        return wsizoo.SlideOutput(logits=self.linear(bag.features.mean(0)))


@pytest.fixture
def with_whole() -> Registry:
    """The core's registry and a plugin's with a whole model."""
    part = wsizoo.Component("model", "whole", f"{__name__}:Whole", "a toy", "a test")
    hooks = types.ModuleType("whole_hooks")
    hooks.__dict__["wsizoo_api"] = 1
    hooks.__dict__["wsizoo_components"] = wsizoo.hookimpl(
        lambda: [part], specname="wsizoo_components"
    )
    dist = types.SimpleNamespace(name="whole-plugin", version="1")
    point = types.SimpleNamespace(name="whole", value="whole_hooks", dist=dist, load=lambda: hooks)
    return Registry.of(discover([point]))


def test_a_whole_model_takes_the_classes_of_the_data(
    cohort: Path, tmp_path: Path, with_whole: Registry
) -> None:
    record = {k: v for k, v in RECORD.items() if k != "aggregator"}
    (tmp_path / "whole.yaml").write_text(yaml.safe_dump({**record, "model": {"name": "whole"}}))
    config = asked(cohort, f"model={tmp_path / 'whole.yaml'}", "data.task=classification")
    read = read_cohort(config.data, task_of(config, with_whole))
    model = make_model(config, read, range(8), 0, with_whole)
    assert model.classes == ["benign", "malign"]
