"""Published weights of a toy's authors: what fits is read, and what does not is told whole."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import wsizoo
from tests.toy_layout import Toy, assert_same, build, toy_registry, weight_format
from wsizoo.errors import NotFoundError, PluginError, SpecError, StrictnessError
from wsizoo.model import SlideModel
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.weight_formats import WeightLayout, fill, find_layout


class Wrong(Toy):
    """Reads names that the model does not have."""

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        return {name.upper(): tensor for name, tensor in super().read(tensors, model).items()}


class Forgetful(Toy):
    """Reads one matrix as something else than it wrote."""

    def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
        found = super().read(tensors, model)
        return {**found, "head.linear.weight": found["head.linear.weight"].flip(0)}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return toy_registry(weight_format("toy-official", Toy), weight_format("of-mean", Toy, "mean"))


@pytest.mark.parametrize("overrides", [(), ("aggregator.gated=false",), ("head=null",)])
def test_what_was_written_is_read_number_for_number(
    registry: Registry, overrides: tuple[str, ...]
) -> None:
    model, other = (build(registry, *overrides, seed=seed) for seed in (1, 2))
    layout = find_layout("toy-official", model, registry.plugins)
    published = {name: tensor.clone() for name, tensor in layout.write(model).items()}
    fill(other, published, layout, "'x'")
    assert_same(model, other)
    again = layout.write(other)
    assert again.keys() == published.keys()
    assert all(torch.equal(again[name], published[name]) for name in published)


@pytest.mark.parametrize("prefix", ["module.", "model.", "model.module.", "_orig_mod.module."])
def test_a_prefix_that_all_names_have_is_taken_off(registry: Registry, prefix: str) -> None:
    model, other = build(registry, seed=1), build(registry, seed=2)
    fill(other, {prefix + name: t for name, t in Toy().write(model).items()}, Toy(), "'x'")
    assert_same(model, other)


def test_a_prefix_that_some_names_have_stays(registry: Registry) -> None:
    published = Toy().write(build(registry))
    published["module.fc.bias"] = published.pop("fc.bias")
    with pytest.raises(
        StrictnessError,
        match=r"As far as it tells it is of the configuration of 'toy': tensors were left out of "
        r"it or added to it, .*; 1 missing: fc\.bias; 1 unexpected: modu",
    ):
        fill(build(registry), published, Toy(), "'x'")


def test_a_prefix_of_the_layout_itself_stays(registry: Registry) -> None:
    class Prefixed(Toy):
        def write(self, model: SlideModel) -> dict[str, Tensor]:
            return {f"model.{name}": tensor for name, tensor in super().write(model).items()}

        def read(self, tensors: Mapping[str, Tensor], model: SlideModel) -> dict[str, Tensor]:
            own = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
            return super().read(own, model)

    model, other = build(registry, seed=1), build(registry, seed=2)
    fill(other, Prefixed().write(model), Prefixed(), "'x'")
    assert_same(model, other)


def test_what_does_not_fit_is_told_after_what_the_file_tells(registry: Registry) -> None:
    published = Toy().write(build(registry, "aggregator.gated=false", "aggregator.dim=5"))
    before = build(registry)
    with pytest.raises(
        StrictnessError,
        match=r"^The weights of 'x\.pt' do not fit the model\. The file tells: "
        r"'aggregator\.gated=false' 'aggregator\.dim=5'; 'toy' was built otherwise; 2 missing: "
        r"attention_U\.bias, attention_U\.weight; 5 misshapen: attention_V\.weight \(4, 5\), "
        r"expected \(4, 6\), classifier\.weight .*, fc\.bias \(5,\), expected \(6,\), \.\.\.$",
    ):
        fill(before, published, Toy(), "'x.pt'")
    assert_same(before, build(registry))


def test_where_a_layout_tells_nothing_the_configuration_is_still_named(registry: Registry) -> None:
    published = Toy().write(build(registry, "aggregator.attention=3"))
    with pytest.raises(
        StrictnessError,
        match=r"It is of another configuration than 'toy' was built with: override that; 5 "
        r"misshapen: attention_U\.bias \(3,\), expected \(4,\), ",
    ):
        fill(build(registry), published, Toy(), "'x'")


def test_another_number_of_classes_is_told(registry: Registry) -> None:
    published = Toy().write(build(registry, "head.classes=[a,b,c]"))
    with pytest.raises(
        StrictnessError,
        match=r"The file is of 3 classes, 'toy' has 2 \(normal, tumour\): give head\.classes 3 "
        r"names; 2 misshapen: classifier\.bias \(3,\), expected \(2,\), ",
    ):
        fill(build(registry), published, Toy(), "'x'")
    bins = [build(registry, "head=survival", f"head.bins={n}") for n in (3, 4)]
    with pytest.raises(
        StrictnessError, match=r"The file is of 3 outputs, 'toy' has 4: override he"
    ):
        fill(bins[1], Toy().write(bins[0]), Toy(), "'x'")
    wider = Toy().write(build(registry, "head.classes=[a,b,c]", "aggregator.attention=3"))
    with pytest.raises(StrictnessError, match="It is of another configuration than"):
        fill(build(registry), wider, Toy(), "'x'")


@pytest.mark.parametrize("tensors", [{}, {"layer1.conv.weight": torch.ones(3)}])
def test_a_file_of_another_format_is_suspected(
    registry: Registry, tensors: dict[str, Tensor]
) -> None:
    with pytest.raises(
        StrictnessError, match=r"None of its names is one of this format: it may be"
    ):
        fill(build(registry), tensors, Toy(), "'x'")


def test_values_that_the_model_cannot_hold_are_refused(registry: Registry) -> None:
    published = Toy().write(build(registry))
    published |= {"fc.shift": torch.ones(6), "temperature": torch.tensor(3.0)}
    with pytest.raises(
        StrictnessError, match=r"cannot hold the values of fc\.shift, temperature \(tied to others"
    ):
        fill(build(registry), published, Toy(), "'x'")


def test_what_the_published_code_never_reads_may_be_anything_that_fits_or_be_missing(
    registry: Registry,
) -> None:
    model = build(registry, seed=1)
    published = Toy().write(model)
    for held in (torch.ones(3), None):
        other = build(registry, seed=2)
        given = {**published, "loss.weight": held}
        fill(other, {name: t for name, t in given.items() if t is not None}, Toy(), "'x'")
        assert_same(model, other)
    with pytest.raises(StrictnessError, match=r"misshapen: loss\.weight \(4,\), expected \(3,\)"):
        fill(model, {**published, "loss.weight": torch.ones(4)}, Toy(), "'x'")


def test_half_precision_and_nan_are_read_as_they_are(registry: Registry) -> None:
    model, other = build(registry, seed=1), build(registry, seed=2)
    published = {name: tensor.half() for name, tensor in Toy().write(model).items()}
    published["fc.bias"][0] = published["fc.shift"][0] = torch.nan
    fill(other, published, Toy(), "'x'")
    bias = other.inference_state()["aggregator.embed.0.bias"]
    assert torch.equal(bias[1:], published["fc.bias"][1:].float())
    assert bool(bias[0].isnan())


def test_a_layout_that_is_no_inverse_of_itself_is_found_out(registry: Registry) -> None:
    published = Toy().write(build(registry, seed=1))
    with pytest.raises(PluginError, match=r"Wrong\.read gives other tensors: .*unexpected: AGGREG"):
        fill(build(registry), published, Wrong(), "'x'")
    with pytest.raises(StrictnessError, match=r"cannot hold the values of classifier\.weight"):
        fill(build(registry), published, Forgetful(), "'x'")


def test_an_unknown_format_suggests_the_near_one(registry: Registry) -> None:
    model = build(registry)
    with pytest.raises(
        NotFoundError,
        match=r"No weight format named 'toy-oficial' is installed\. Did you mean 'toy-official'\? "
        r"See: wsizoo list --parts weight-format",
    ):
        find_layout("toy-oficial", model, registry.plugins)
    with pytest.raises(NotFoundError, match=r"Weight formats of abmil: toy-official\. See"):
        find_layout("theirs", model, registry.plugins)
    with pytest.raises(NotFoundError, match=r"Weight formats of abmil: none\."):
        find_layout("toy-official", model, discover([], allow=""))


def test_a_format_of_other_models_is_refused(registry: Registry) -> None:
    with pytest.raises(SpecError, match=r"in format 'of-mean' are of mean; 'toy' has abmil"):
        find_layout("of-mean", build(registry), registry.plugins)


def test_a_layout_that_is_not_there_names_its_format() -> None:
    missing = wsizoo.WeightFormat("gone", ("abmil",), "math:Gone", "a toy's", "a test")
    registry = toy_registry(missing)
    with pytest.raises(PluginError, match=r"weight format 'gone': 'math' holds no 'Gone'"):
        find_layout("gone", build(registry), registry.plugins)


def test_a_base_layout_tells_nothing_and_does_nothing(registry: Registry, tmp_path: Path) -> None:
    model = build(registry)
    assert (list(WeightLayout().overrides({})), list(WeightLayout().unused(model))) == ([], [])
    assert WeightLayout().container({"x": torch.ones(1)}).keys() == {"x"}
    with pytest.raises(NotImplementedError):
        WeightLayout().write(model)
    with pytest.raises(NotImplementedError):
        WeightLayout().read({}, model)
