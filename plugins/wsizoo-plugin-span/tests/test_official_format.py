"""Published weights through the public functions: read, predicted with, written, or refused."""

import dataclasses
import importlib.metadata
import runpy
from pathlib import Path

import pytest
import torch
from wsizoo_plugin_span import hooks
from wsizoo_plugin_span.official_hints import told

import wsizoo
from wsizoo.conversion import convert_weights
from wsizoo.errors import NotFoundError, SpecError, StrictnessError, WeightsError
from wsizoo.plugins import discover
from wsizoo.registry import Registry
from wsizoo.testing import parity_cases
from wsizoo.testing.parity_runner import compare
from wsizoo.weights import read_tensors

official_settings = runpy.run_path(str(Path(__file__).with_name("official_config.py")))[
    "official_settings"
]
FORMAT, NAME, SPACING = "span-official", "span-mil-uni", 256
TASKS = ("classification", "segmentation", "survival")
CASES = {
    case.name: case
    for case in parity_cases("span")
    if case.subject in [f"model.{task}" for task in TASKS]
}
FIRST = {case.meta["task"]: name for name, case in reversed(CASES.items())}  # of each task
HEADS = {
    "classification": ["head.classes=[{}]"],
    "segmentation": ["head=segmentation", "head.one_logit=true", "head.classes=[a,b]"],
    "survival": ["head=survival", "head.bins={}"],
}
needs_cases = pytest.mark.skipif(not CASES, reason="no parity cases of 'span' here")


@pytest.fixture(scope="module")
def registry():
    """The core and this plugin alone."""
    point = importlib.metadata.EntryPoint("span", hooks.__name__, "wsizoo")
    registry = Registry.of(discover([point]))
    assert registry.plugins.all[-1].works, registry.plugins.all[-1].reason
    return registry


def as_text(value):
    """A value as an override has it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(as_text, value))}]"
    return "null" if value is None else str(value).lower()


def settings_of(case):
    meta = case.meta
    options = meta["task_config"].get(meta["task"])
    head_dim = meta.get("head_dim") or 64
    return official_settings(
        meta["in_channels"], meta["model_config"], meta["task"], options, head_dim
    )


def overrides_of(case):
    """What makes the model of the zoo that a case's weights are of."""
    settings, task, n = settings_of(case), case.meta["task"], case.meta["num_classes"]
    outputs = ",".join(f"c{i}" for i in range(n)) if task == "classification" else n
    return [
        f"encoder.dim={settings.in_dim}",
        "aggregator=span-unet" if task == "segmentation" else "aggregator=span",
        *(
            f"aggregator.{key}={as_text(value)}"
            for key, value in dataclasses.asdict(settings).items()
            if key != "in_dim"
        ),
        *(text.format(outputs) for text in HEADS[task]),
    ]


def read(path, registry, case, *more):
    return wsizoo.read_weights(path, FORMAT, NAME, *overrides_of(case), *more, registry=registry)


def bag_of(case):
    given = case.inputs()
    return wsizoo.Bag(given["feats"], given["pos"].long() * SPACING, spacing=float(SPACING))


def check_outputs(case, model):
    """The model's outputs against all of the case's that a user sees.

    A bag's grid begins at its first patches, so a case whose cells do not begin at 0 is none.
    """
    if bool(case.inputs()["pos"].min(0).values.any()):
        return
    with torch.no_grad():
        output = model(bag_of(case))
    logits = output.logits[None] if output.instance_logits is None else output.instance_logits
    found = {"out.logits": logits}
    if output.hazards is not None:
        found |= {"out.hazards": output.hazards[None], "out.risk": output.risk[None]}
    rules = {name: case.tolerance[name] for name in found}
    compare(dataclasses.replace(case, meta={**case.meta, "tolerance": rules}), found)


def check_same(before, after):
    assert before.keys() == after.keys()
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_published_weights_predict_what_they_did_and_are_written_as_they_were(
    name, registry, tmp_path
):
    case = CASES[name]
    model = read(case.path / "weights.safetensors", registry, case)
    check_outputs(case, model)
    back = wsizoo.write_weights(model, tmp_path / "x.pt", FORMAT, registry=registry)
    check_same(case.weights(), torch.load(back, weights_only=True))


@pytest.mark.parity
@needs_cases
@pytest.mark.parametrize("name", FIRST.values())
def test_a_training_checkpoint_becomes_a_verified_folder_that_predicts_the_same(
    name, registry, tmp_path
):
    case = CASES[name]
    parallel = {f"module.{key}": tensor for key, tensor in case.weights().items()}
    torch.save({"state_dict": parallel, "epoch": 7}, tmp_path / "x.pt")
    convert_weights(
        tmp_path / "x.pt",
        FORMAT,
        NAME,
        *overrides_of(case),
        out=tmp_path / "model",
        registry=registry,
    )
    model = wsizoo.load(tmp_path / "model", registry=registry)
    assert model.trained
    check_outputs(case, model)
    back = wsizoo.write_weights(model, tmp_path / "y.safetensors", FORMAT, registry=registry)
    check_same(case.weights(), read_tensors(back)[0])


@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_what_a_file_tells_of_its_configuration_is_true(name):
    settings = settings_of(CASES[name])
    for text in told(CASES[name].weights()):
        key, _, value = text.partition("=")
        part, _, option = key.partition(".")
        if part == "aggregator" and value:
            known = getattr(settings, option)
            assert value == (f"{known:g}" if isinstance(known, float) else as_text(known)), text


def test_a_file_of_something_else_tells_nothing():
    assert told({}) == []
    assert told({"encoder.blocks.0.weight": torch.ones(2), "fc.bias": torch.ones(3)}) == []
    odd = "encoder.blocks.0.modules_dict.convs_0.0.conv_block.linear.0.weight"
    assert told({odd: torch.ones(2)}) == []


@pytest.fixture
def saved(registry, tmp_path):
    """A published file of a small model, and what made it."""
    small = ["encoder.dim=32", "aggregator.head_dim=8", "aggregator.compat=published"]
    small.append("head.classes=[a,b]")
    model = wsizoo.build(NAME, *small, seed=3, registry=registry)
    path = wsizoo.write_weights(model, tmp_path / "x.safetensors", FORMAT, registry=registry)
    return path, small


def test_weights_of_another_configuration_are_told_what_to_type(saved, registry):
    path, small = saved
    other = ["aggregator.layers=11", "aggregator.half_window=2", "aggregator.ff_ratio=4"]
    with pytest.raises(
        StrictnessError,
        match=r"do not fit the model\. The file tells: 'aggregator\.layers=111' "
        r"'aggregator\.ff_ratio=2' 'aggregator\.half_window=3'; 'span-mil-uni' was built "
        r"otherwise; 28 unexpected: encoder\.blocks\.2\.(\S+, ){3}\.{3}; 8 misshapen: "
        r"(encoder\.blocks\.0\.[^()]+\([^()]+\), expected \([^()]+\), ){3}\.{3}$",
    ):
        wsizoo.read_weights(path, FORMAT, NAME, *small, *other, registry=registry)


def test_options_that_leave_few_traces_are_told_too(saved, registry, tmp_path):
    small = saved[1]

    def refused(of, read_as):
        model = wsizoo.build(NAME, *small, *of, registry=registry)
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.pt"
        wsizoo.write_weights(model, path, FORMAT, registry=registry)
        with pytest.raises(StrictnessError, match=r"The file tells: ") as caught:
            wsizoo.read_weights(path, FORMAT, NAME, *small, *read_as, registry=registry)
        return str(caught.value).partition("The file tells: ")[2].partition("; ")[0]

    pooled = "aggregator.pooling=multiattn"
    undropped = [pooled, "aggregator.pool_dropout=0"]
    assert refused(undropped, [pooled]) == "'aggregator.pool_dropout=0'"
    assert refused([pooled], undropped) == "'aggregator.pool_dropout above 0'"
    statistics, told = ["aggregator.tokens=[max,mean]"], "'aggregator.tokens with {}'"
    assert refused(statistics, []) == told.format("nothing but max, mean, std")
    mixed = ["aggregator.tokens=[fix1e-4,lrn,mean,0.5,lrn]"]
    stored = told.format("1 fix and 1 random and 2 lrn, perhaps with max, mean, std")
    assert refused(mixed, statistics) == stored


def test_two_projections_that_a_model_ties_must_be_equal_in_the_file(saved, registry):
    path, small = saved
    with pytest.raises(StrictnessError, match=r"share_qkv"):
        wsizoo.read_weights(
            path, FORMAT, NAME, *small, "aggregator.share_qkv=true", registry=registry
        )


def test_a_model_that_is_not_the_published_one_is_refused_in_both_directions(
    saved, registry, tmp_path
):
    path, small = saved
    with pytest.raises(SpecError, match=r"gives other numbers\. Add aggregator\.compat=published"):
        wsizoo.read_weights(path, FORMAT, NAME, *small, "aggregator.compat=null", registry=registry)
    ours = wsizoo.build(NAME, *small, "aggregator.compat=null", registry=registry)
    with pytest.raises(SpecError, match=r"'span-mil-uni' differs from the published SPAN where"):
        wsizoo.write_weights(ours, tmp_path / "y.pt", FORMAT, registry=registry)
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.parametrize(
    ("head", "has"), [("null", "no head"), ("regression", "a regression head")]
)
def test_a_task_that_the_published_code_has_not_is_refused(saved, registry, head, has):
    path, small = saved
    with pytest.raises(SpecError, match=rf"segmentation; 'span-mil-uni' has {has}$"):
        wsizoo.read_weights(path, FORMAT, NAME, *small[:-1], f"head={head}", registry=registry)


def test_a_damaged_file_and_a_wrong_format_are_named(saved, registry):
    path, small = saved
    with pytest.raises(NotFoundError, match=r"'span-oficial' is .* Did you mean 'span-official'\?"):
        wsizoo.read_weights(path, "span-oficial", NAME, *small, registry=registry)
    with pytest.raises(SpecError, match=r"are of span or span-unet; 'abmil-uni' has abmil"):
        wsizoo.read_weights(path, FORMAT, "abmil-uni", "head.classes=[a,b]", registry=registry)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match=r"x\.safetensors cannot be read as safetensors"):
        wsizoo.read_weights(path, FORMAT, NAME, *small, registry=registry)
