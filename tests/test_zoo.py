"""load, build, adapt: random, trained, or trained with a new head; never one for another."""

import dataclasses
import json
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import wsizoo
from wsizoo import Aggregated, Bag, Component, SlideOutput
from wsizoo.errors import (
    FingerprintError,
    NotFoundError,
    PluginError,
    SpecError,
    StrictnessError,
    WeightsError,
)
from wsizoo.files import sha256_of
from wsizoo.model import SlideModel
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.testing.hub import HubDouble
from wsizoo.weights import read_tensors, write_tensors

ENTRIES = """
models:
  toy:
    summary: a toy
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: {name: abmil, dim: 6, attention: 4}
    head: {name: classification, classes: [a, b]}
  toy-selected:
    summary: a toy with a selector
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    selector: best-half
    aggregator: {name: mean, dim: 6}
    head: {name: segmentation, classes: [a, b]}
  toy-owner:
    summary: a toy that owns its classifier
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: owner
    head: {name: classification, classes: [a, b]}
  toy-wide:
    summary: a toy with wider patches
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: wide
    head: {name: segmentation, classes: [a, b]}
  toy-noisy:
    summary: a toy that draws more than weights
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: noisy
    head: regression
  toy-teacher:
    summary: a toy with a teacher
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: taught
    head: regression
  toy-whole:
    summary: a toy in one piece
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    model: {name: whole, classes: [x, yes, 2]}
  toy-copies:
    summary: a toy whose weights cannot be loaded
    licence: MIT
    source: a test
    encoder: {name: made-up, dim: 8}
    aggregator: copies
  toy-coded:
    summary: a toy on an encoder of its plugin
    licence: MIT
    source: a test
    encoder: coded
    aggregator: {name: mean, dim: null}
  toy-far:
    summary: a toy whose plugin is not here
    licence: MIT
    source: a test
    plugin: wsizoo-plugin-far
    encoder: {name: made-up, dim: 8}
    aggregator: far
encoders:
  only-files:
    summary: an encoder that other tools run
    licence: MIT
    source: a test
    dim: 16
  parametrised:
    summary: an encoder with an argument
    licence: MIT
    source: a test
    dim: 5
    component: coded
    params: {dim: 5}
  misnamed:
    summary: an encoder that is none
    licence: MIT
    source: a test
    component: no-encoder
    params: {in_dim: 8}
"""


class BestHalf(wsizoo.Selector):
    """Keeps the better half."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.score = nn.Linear(in_dim, 1)

    def forward(self, bag: Bag) -> wsizoo.Selected:
        scores = self.score(bag.features)[:, 0]
        index = scores.topk((len(bag) + 1) // 2).indices.sort().values
        return wsizoo.Selected(bag.subset(index), index, scores)


class Mean(wsizoo.Aggregator):
    """The mean, with a trained scale."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, in_dim)
        self.scale = nn.Parameter(torch.randn(in_dim))

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0) * self.scale)


class Owner(Mean):
    """It owns its classifier."""

    owns_classifier = True
    classifier_tensors = ("classify.weight", "classify.bias")

    def __init__(self, in_dim: int, n_outputs: int | None) -> None:
        super().__init__(in_dim)
        self.classify = None if n_outputs is None else nn.Linear(in_dim, n_outputs)

    def forward(self, bag: Bag) -> Aggregated:
        aggregated = super().forward(bag)
        assert aggregated.slide is not None
        if self.classify is not None:
            aggregated.logits = self.classify(aggregated.slide)
        return aggregated


class Told(Owner):
    """It asks what its head's task is."""

    def __init__(self, in_dim: int, n_outputs: int | None, task: str | None = None) -> None:
        super().__init__(in_dim, n_outputs)
        self.task = task


class Wide(wsizoo.Aggregator):
    """Vectors of patches that are wider than the slide's."""

    gives_instances = True

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim, 3, instance_dim=in_dim)

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0)[:3], instances=bag.features)


class Noisy(Mean):
    """It draws numbers that are no weights, which its outputs depend on."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.embed = nn.Linear(in_dim, in_dim)
        self.noise = torch.rand(in_dim)

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(self.embed(bag.features.mean(0)) + self.noise)


class Taught(Mean):
    """A student that is published, and a teacher that is not."""

    def __init__(self, in_dim: int) -> None:
        super().__init__(in_dim)
        self.teacher = nn.Linear(in_dim, in_dim)

    def inference_state(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.state_dict().items() if not k.startswith("teacher.")}


class Copies(Mean):
    """It publishes copies, into which nothing can be loaded."""

    def inference_state(self) -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in self.state_dict().items()}


class Whole(wsizoo.WholeModel):
    """A whole model."""

    def __init__(self, in_dim: int, classes: list[str]) -> None:
        super().__init__()
        self.classes = tuple(classes)
        self.classify = nn.Linear(in_dim, len(classes))

    def forward(self, bag: Bag) -> SlideOutput:
        scores = self.classify(bag.features)  # (N, C)
        return SlideOutput(logits=scores.mean(0), scores=scores.amax(1))


class Coded(wsizoo.Encoder):
    """An encoder whose width is known of the instance only."""

    name, mpp, patch_size = "coded", 0.5, 224

    def __init__(self, dim: int = 4) -> None:
        super().__init__()
        self.dim = dim


def components() -> list[Component]:
    parts = {
        ("selector", "best-half"): "BestHalf",
        ("aggregator", "owner"): "Owner",
        ("aggregator", "told"): "Told",
        ("aggregator", "taught"): "Taught",
        ("aggregator", "copies"): "Copies",
        ("aggregator", "wide"): "Wide",
        ("aggregator", "noisy"): "Noisy",
        ("model", "whole"): "Whole",
        ("encoder", "coded"): "Coded",
        ("encoder", "no-encoder"): "BestHalf",
    }
    return [
        Component(kind, name, f"{__name__}:{target}", "a toy", "a test")  # type: ignore[arg-type]
        for (kind, name), target in parts.items()
    ]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """The core's registry and a made-up plugin's; the process's own is left alone."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "registry.yaml").write_text(ENTRIES)
    hooks = types.ModuleType("toy_hooks")
    hooks.__dict__["wsizoo_api"] = 1
    for name, hook in (("wsizoo_registry", lambda: folder), ("wsizoo_components", components)):
        hooks.__dict__[name] = wsizoo.hookimpl(hook, specname=name)
    dist = types.SimpleNamespace(name="toy-plugin", version="1")
    point = types.SimpleNamespace(name="toy", value="toy_hooks", dist=dist, load=lambda: hooks)
    registry = Registry.of(discover([point]))
    assert all(plugin.works for plugin in registry.plugins.all), registry.plugins.all
    return registry


BAG = Bag(torch.randn(7, 8, generator=torch.Generator().manual_seed(0)))
NO_TENSORS = {"offsets", "losses", "predictions", "task_weight"}
OUTPUTS = [f.name for f in dataclasses.fields(SlideOutput) if f.name not in NO_TENSORS]


def state(model: SlideModel) -> dict[str, Tensor]:
    return {key: tensor.clone() for key, tensor in model.inference_state().items()}


def same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return mine.keys() == theirs.keys() and all(torch.equal(mine[k], theirs[k]) for k in mine)


def outputs(model: SlideModel, bag: Bag = BAG) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(bag)
    values = {name: getattr(output, name) for name in OUTPUTS}
    return {name: value for name, value in values.items() if value is not None}


# build


def test_build_is_seeded_and_leaves_the_random_state_alone(registry: Registry) -> None:
    before = torch.random.get_rng_state()
    one = wsizoo.build("toy", registry=registry)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(7)
    assert same(state(wsizoo.build("toy", registry=registry)), state(one))
    assert not same(state(wsizoo.build("toy", seed=1, registry=registry)), state(one))
    assert not one.training
    assert not one.trained


def test_build_makes_no_request(registry: Registry, hub: HubDouble) -> None:
    for name in ("toy", "toy-selected", "toy-owner", "toy-teacher", "toy-whole", "toy-coded"):
        assert wsizoo.build(name, registry=registry).name == name
    wsizoo.build("abmil-demo", registry=registry)
    assert hub.log == []


def test_overrides_change_arguments_and_parts(registry: Registry) -> None:
    model = wsizoo.build(
        "toy", "aggregator=mean", "aggregator.dim=3", "head=null", registry=registry
    )
    assert outputs(model)["embedding"].shape == (3,)
    assert model.head is None
    model = wsizoo.build("toy", "selector=best-half", registry=registry)
    assert len(outputs(model)["kept"]) == 4


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "aggregator.dropuot=0",
            r"aggregator 'abmil' of 'toy' has no argument 'dropuot'.*'dropout'",
        ),
        (
            "aggregator.in_dim=3",
            r"'abmil' of 'toy' has no argument 'in_dim'. Did you mean 'dim'?",
        ),
        (
            "aggregator.dropout=5",
            r"ABMIL's dropout is 5, expected a share from 0 to below 1",
        ),
        ("aggregator.dim=-1", r"ABMIL's dim is -1, expected a whole number from 1 on"),
        ("aggregator.dim=wide", r"aggregator 'abmil' of 'toy': dim is 'wide', expected a whole"),
        (
            "head=classification",
            r"head 'classification' of 'toy' needs classes.*head.classes=\[nor",
        ),
        ("aggregator.zzz=3", r"'zzz'\. It takes: attention, dim, "),
        ("encoder=null", r"model 'toy' names no encoder. Give it one: encoder=NAME"),
        ("model=whole", r"either an aggregator or a model"),
    ],
)
def test_an_override_that_does_not_fit_is_named(
    registry: Registry, override: str, told: str
) -> None:
    with pytest.raises(SpecError, match=told):
        wsizoo.build("toy", override, registry=registry)


def test_an_argument_that_is_lacking_is_spelt_as_an_override(registry: Registry) -> None:
    with pytest.raises(SpecError, match=r"'whole' of 'toy-whole' needs classes\. Give it: model\."):
        wsizoo.build("toy-whole", "model=whole", registry=registry)


def test_a_per_patch_head_needs_an_aggregator_that_gives_instances(registry: Registry) -> None:
    with pytest.raises(
        SpecError,
        match=r"'segmentation' of .* reads one vector a patch, which .*'taught' of .* does not",
    ):
        wsizoo.build("toy-teacher", "head=segmentation", "head.classes=[a,b]", registry=registry)


def test_an_owner_that_asks_is_told_the_task_of_its_head(registry: Registry) -> None:
    for head, task in {
        "{name: classification, classes: [a, b]}": "classification",
        "cox": "survival",
        "null": None,
    }.items():
        given = "toy-owner", "aggregator=told", f"head={head}"
        assert wsizoo.build(*given, registry=registry).aggregator.task == task
    with pytest.raises(SpecError, match=r"aggregator 'told' of 'toy-owner' has no argument 'task'"):
        wsizoo.build("toy-owner", "aggregator={name: told, task: survival}", registry=registry)


def test_an_owner_without_head_is_made_without_outputs(registry: Registry) -> None:
    model = wsizoo.build("toy-owner", "head=null", registry=registry)
    assert outputs(model).keys() == {"embedding"}


def test_a_per_patch_head_reads_vectors_of_their_own_width(registry: Registry) -> None:
    model = wsizoo.build("toy-wide", registry=registry)
    assert outputs(model)["instance_logits"].shape == (7, 2)
    assert outputs(model)["embedding"].shape == (3,)


def test_what_is_not_installed_names_the_pip_command(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match="pip install wsizoo-plugin-far"):
        wsizoo.build("toy-far", registry=registry)
    with pytest.raises(NotFoundError, match=r"No encoder named 'nowhere'.*encoder\.dim=D"):
        wsizoo.build("toy", "encoder=nowhere", registry=registry)


def test_the_plugin_of_an_entry_is_no_hint_for_another_part(registry: Registry) -> None:
    with pytest.raises(NotFoundError, match=r"named 'abmill' is installed\. Did you mean 'abmil'"):
        wsizoo.build("toy-far", "aggregator=abmill", registry=registry)
    with pytest.raises(NotFoundError, match=r"named 'span' is installed.*wsizoo-plugin-span"):
        wsizoo.build("toy-far", "aggregator=span", registry=registry)


def test_threads_build_the_weights_of_their_seeds(registry: Registry) -> None:
    def built(seed: int) -> dict[str, Tensor]:
        return state(wsizoo.build("toy", "aggregator.dim=64", seed=seed, registry=registry))

    alone = [built(seed) for seed in range(4)]
    before = torch.random.get_rng_state()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(built, [seed % 4 for seed in range(40)]))
    assert all(same(one, alone[i % 4]) for i, one in enumerate(together))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_width_comes_from_the_catalogue_the_entry_or_the_encoder(registry: Registry) -> None:
    assert wsizoo.build("toy", "encoder=only-files", registry=registry).in_dim == 16
    assert wsizoo.build("toy", "encoder.dim=3", registry=registry).in_dim == 3
    assert wsizoo.build("toy-coded", registry=registry).in_dim == 4
    assert wsizoo.build("toy", "encoder=pixels", registry=registry).in_dim == 3


# load


@pytest.mark.parametrize(
    "name",
    ["toy", "toy-selected", "toy-owner", "toy-teacher", "toy-whole", "toy-coded", "toy-wide"],
)
def test_every_kind_of_model_comes_back_bit_for_bit(
    registry: Registry, tmp_path: Path, name: str
) -> None:
    model = wsizoo.build(name, seed=5, registry=registry)
    model.trained = True
    loaded = wsizoo.load(wsizoo.save(model, tmp_path / "model"), registry=registry)
    assert same(state(loaded), state(model))
    bag = Bag(torch.randn(5, model.in_dim))
    assert same(outputs(loaded, bag), outputs(model, bag))
    assert loaded.trained
    assert not loaded.training
    assert wsizoo.verify(tmp_path / "model", registry).name == name


@pytest.fixture
def saved(registry: Registry, tmp_path: Path) -> Path:
    return wsizoo.save(wsizoo.build("toy", seed=5, registry=registry), tmp_path / "model")


def test_a_teacher_is_not_published(registry: Registry, tmp_path: Path) -> None:
    model = wsizoo.build("toy-teacher", seed=5, registry=registry)
    folder = wsizoo.save(model, tmp_path / "model")
    tensors, _ = read_tensors(folder / "model.safetensors")
    assert set(tensors) == {"aggregator.scale", "head.linear.weight", "head.linear.bias"}


def test_load_takes_an_override_that_keeps_every_tensor(registry: Registry, saved: Path) -> None:
    same_classes = "head.classes=[a,b]"
    model = wsizoo.load(saved, "aggregator.dropout=0", same_classes, registry=registry)
    assert model.spec.aggregator is not None
    assert model.spec.aggregator["dropout"] == 0
    assert model.classes == ["a", "b"]
    assert same(outputs(model), outputs(wsizoo.load(saved, registry=registry)))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        (
            "head.classes=[a,b,c]",
            r"'toy' was trained with head\.classes \['a', 'b'\], not \['a', 'b', 'c'\]",
        ),
        ("head.classes=[b,a]", r"was trained with head\.classes \['a', 'b'\], not \['b', 'a'\]"),
        ("head={name: survival, bins: 2}", "was trained with head.name classification, not surv"),
        ("aggregator.dim=5", "misshapen: aggregator"),
        ("aggregator=mean", "unexpected: aggregator"),
        ("head=null", "was trained with head.name classification, not None"),
        ("selector=best-half", r"missing: selector\.score\.bias"),
        ("encoder.name=other", "trained on features with encoder made-up, the entry states other"),
    ],
)
def test_load_refuses_an_override_that_changes_what_was_trained(
    registry: Registry, saved: Path, override: str, told: str
) -> None:
    adapt = rf"{told}.* for a new head: wsizoo\.adapt\('.*model', \.\.\.\)"
    with pytest.raises(SpecError, match=rf"cannot take \['{override[:4]}.*{adapt}"):
        wsizoo.load(saved, override, registry=registry)


def test_load_lists_everything_that_does_not_fit(registry: Registry, saved: Path) -> None:
    tensors, metadata = read_tensors(saved / "model.safetensors")
    tensors["aggregator.extra"] = tensors.pop("aggregator.score.bias")
    tensors["head.linear.bias"] = torch.zeros(7)
    write_tensors(saved / "model.safetensors", tensors, metadata)
    config = json.loads((saved / "config.json").read_text())
    config["weights"]["sha256"] = sha256_of(saved / "model.safetensors")
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        StrictnessError,
        match=r"weights of 'toy' do not fit the model; 1 missing: aggregator\.score\.bias; "
        r"1 unexpected: aggregator\.extra; 1 misshapen: head\.linear\.bias \(7,\), expected \(2,\)",
    ):
        wsizoo.load(saved, registry=registry)


def test_weights_that_cannot_be_loaded_into_a_part_are_refused(
    registry: Registry, tmp_path: Path
) -> None:
    folder = wsizoo.save(wsizoo.build("toy-copies", registry=registry), tmp_path / "model")
    with pytest.raises(PluginError, match=r"aggregator\.scale of 'toy-copies' is a copy in infere"):
        wsizoo.load(folder, registry=registry)


def test_numbers_that_are_no_weights_are_drawn_on_loading_as_on_building(
    registry: Registry, tmp_path: Path
) -> None:
    model = wsizoo.build("toy-noisy", registry=registry)
    loaded = wsizoo.load(wsizoo.save(model, tmp_path / "model"), registry=registry)
    assert same(outputs(loaded), outputs(model))


def test_load_requires_the_features_it_was_trained_on(registry: Registry, saved: Path) -> None:
    model = wsizoo.load(saved, registry=registry)
    with pytest.raises(FingerprintError, match="was made for made-up features"):
        model(BAG.replace(encoder=wsizoo.Fingerprint("resnet50")))
    assert outputs(model, BAG.replace(encoder=wsizoo.Fingerprint("made-up")))


def test_what_the_entry_states_of_features_is_required_beside_the_record(
    registry: Registry, tmp_path: Path
) -> None:
    model = wsizoo.build("toy", "encoder.mpp=0.5", registry=registry)
    model.requires = wsizoo.Fingerprint("made-up", revision="v1", declared=True)
    loaded = wsizoo.load(wsizoo.save(model, tmp_path / "model"), registry=registry)
    expected = wsizoo.Fingerprint("made-up", revision="v1", mpp=0.5, declared=True)
    assert loaded.requires == expected


def test_the_model_of_the_wheel_loads_and_verifies() -> None:
    model = wsizoo.load("abmil-demo")
    assert model.classes == ["normal", "tumour"]
    assert model.requires.encoder == "handcrafted-he"
    assert max(wsizoo.verify("abmil-demo").outputs.values()) < 1e-3


# adapt


def test_adapt_keeps_the_body_and_makes_a_new_head(registry: Registry, saved: Path) -> None:
    trained = wsizoo.load(saved, registry=registry)
    model = wsizoo.adapt(saved, "head.classes=[a,b,c]", registry=registry)
    assert outputs(model)["logits"].shape == (3,)
    assert torch.equal(outputs(model)["embedding"], outputs(trained)["embedding"])
    assert model.requires == trained.requires
    assert not model.training
    assert not model.trained
    again = wsizoo.adapt(saved, "head.classes=[a,b,c]", registry=registry)
    other = wsizoo.adapt(saved, "head.classes=[a,b,c]", seed=1, registry=registry)
    assert same(state(again), state(model))
    assert not same(state(other), state(model))


def test_adapt_makes_the_head_anew_even_when_it_would_fit(registry: Registry, saved: Path) -> None:
    trained, model = wsizoo.load(saved, registry=registry), wsizoo.adapt(saved, registry=registry)
    assert not torch.equal(outputs(model)["logits"], outputs(trained)["logits"])


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (("head=null",), "embedding"),
        (("head=survival", "head.bins=2"), "hazards"),
        (("head=regression",), "value"),
        (("head=segmentation", "head.classes=[a,b]"), "instance_logits"),
    ],
)
def test_adapt_takes_any_head(
    registry: Registry, saved: Path, overrides: tuple[str, ...], given: str
) -> None:
    model = wsizoo.adapt(saved, *overrides, registry=registry)
    assert given in outputs(model)
    assert ("logits" in outputs(model)) == (given in ("hazards", "value"))


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("aggregator.dim=5", "misshapen: aggregator"),
        ("aggregator=mean", "unexpected: aggregator"),
        ("encoder.name=other", "trained on features with encoder made-up"),
    ],
)
def test_adapt_is_strict_on_the_body(
    registry: Registry, saved: Path, override: str, told: str
) -> None:
    with pytest.raises(WeightsError, match=rf"of 'toy' \(without its head\) .*{told}"):
        wsizoo.adapt(saved, override, registry=registry)


def test_adapt_brings_selector_and_aggregator(registry: Registry, tmp_path: Path) -> None:
    source = wsizoo.build("toy-selected", seed=5, registry=registry)
    folder = wsizoo.save(source, tmp_path / "model")
    model = wsizoo.adapt(folder, "head=regression", registry=registry)
    body = {k: t for k, t in state(source).items() if not k.startswith("head.")}
    assert {k.partition(".")[0] for k in body} == {"selector", "aggregator"}
    assert same({k: t for k, t in state(model).items() if not k.startswith("head.")}, body)


def test_adapt_with_another_selector_keeps_the_rest_and_the_head(
    registry: Registry, saved: Path
) -> None:
    source = state(wsizoo.load(saved, registry=registry))
    model = state(wsizoo.adapt(saved, "selector=best-half", registry=registry))
    kept = {key: tensor for key, tensor in model.items() if not key.startswith("selector.")}
    assert len(kept) < len(model)
    assert same(kept, source)
    again = state(wsizoo.adapt(saved, "selector=best-half", seed=1, registry=registry))
    assert not same(again, model)
    other = wsizoo.adapt(saved, "selector=best-half", "head.classes=[a,b,c,d]", registry=registry)
    assert outputs(other)["logits"].shape == (4,)
    with pytest.raises(WeightsError, match=r"\(without its selector\) .*misshapen: aggregator"):
        wsizoo.adapt(saved, "selector=best-half", "aggregator.dim=5", registry=registry)


def test_adapt_may_leave_the_selector_out(registry: Registry, tmp_path: Path) -> None:
    source = wsizoo.build("toy-selected", seed=5, registry=registry)
    folder = wsizoo.save(source, tmp_path / "model")
    model = state(wsizoo.adapt(folder, "selector=null", registry=registry))
    assert same(model, {k: t for k, t in state(source).items() if not k.startswith("selector.")})


def test_adapt_renews_the_classifier_that_an_aggregator_owns(
    registry: Registry, tmp_path: Path
) -> None:
    source = wsizoo.build("toy-owner", seed=5, registry=registry)
    folder = wsizoo.save(source, tmp_path / "model")
    model = wsizoo.adapt(folder, "head.classes=[a,b,c]", registry=registry)
    assert outputs(model)["logits"].shape == (3,)
    assert torch.equal(state(model)["aggregator.scale"], state(source)["aggregator.scale"])
    model = wsizoo.adapt(folder, registry=registry)
    key = "aggregator.classify.weight"
    assert not torch.equal(state(model)[key], state(source)[key])


def test_a_whole_model_runs_and_is_adapted_whole(registry: Registry, tmp_path: Path) -> None:
    source = wsizoo.build("toy-whole", seed=5, registry=registry)
    assert outputs(source).keys() == {"logits", "scores"}
    folder = wsizoo.save(source, tmp_path / "model")
    assert same(state(wsizoo.adapt(folder, registry=registry)), state(source))
    assert wsizoo.load(folder, registry=registry).classes == ["x", "yes", "2"]
    told = (
        r"'toy-whole' was trained with model\.classes \['x', 'yes', '2'\], not \['2', 'yes', 'x'\]"
    )
    with pytest.raises(SpecError, match=told):
        wsizoo.load(folder, "model.classes=[2,yes,x]", registry=registry)
    with pytest.raises(WeightsError, match=told):
        wsizoo.adapt(folder, "model.classes=[2,yes,x]", registry=registry)


def test_the_registry_of_the_process_knows_nothing_of_these_tests(registry: Registry) -> None:
    assert "toy" in wsizoo.list_models(registry=registry)
    assert "toy" not in wsizoo.list_models()
