"""The names of LongMIL's models, and the published file as one of them."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_longmil.official_format import LongMILOfficial

import wsizoo
from wsizoo.errors import SpecError, StrictnessError
from wsizoo.testing import Case, compare, parity_cases

CLASSES = "head.classes=[normal,tumour]"
FORMAT, NAME = "longmil-v1-official", "longmil-v1-lunit"
CASES = {case.name: case for case in parity_cases("longmil") if case.subject == "v1"}
SMALL = ["encoder.dim=24", "aggregator.dim=16", CLASSES]
needs_cases = pytest.mark.skipif(not CASES, reason="no parity cases of LongMIL here")


@pytest.mark.parametrize(
    ("name", "overrides", "field"),
    [
        ("longmil-uni", [CLASSES], "logits"),
        ("longmil-lunit", [CLASSES], "logits"),
        ("longmil-resnet50", [CLASSES], "logits"),
        ("longmil-gigapath", [CLASSES], "logits"),
        ("longmil-surv-hipt", [], "hazards"),
        ("longmil-linear-uni", [CLASSES], "logits"),
        ("full-attention-uni", [CLASSES], "logits"),
        ("longmil-v1-lunit", [CLASSES], "logits"),
    ],
)
def test_models_build_by_name(name, overrides, field):
    model = wsizoo.build(name, *overrides)
    assert model.spec.plugin == "wsizoo-plugin-longmil"
    coords = torch.tensor([[i // 5, i % 5] for i in range(25)]) * 224
    bag = wsizoo.Bag(torch.randn(25, model.in_dim), coords, spacing=224.0)
    with torch.no_grad():
        output = model(bag)
    assert getattr(output, field) is not None
    if name != "longmil-linear-uni":
        torch.testing.assert_close(output.scores.sum(), torch.tensor(1.0))


def test_version_1_reads_slides_whose_spacing_is_not_known():
    model = wsizoo.build("longmil-v1-lunit", CLASSES, seed=0).eval()
    coords = torch.tensor([[i // 5, i % 5] for i in range(25)]) * 448
    bag = wsizoo.Bag(torch.randn(25, model.in_dim), coords)
    with torch.no_grad():
        torch.testing.assert_close(model(bag).logits, model(bag.replace(spacing=224.0)).logits)


def read(path, *overrides):
    return wsizoo.read_weights(path, FORMAT, NAME, *overrides)


@needs_cases
@pytest.mark.parity
@pytest.mark.parametrize("name", CASES)
def test_published_weights_predict_what_they_did_and_are_written_as_they_were(name, tmp_path):
    case: Case = CASES[name]
    config, inputs = case.config, case.inputs()
    labels = ",".join(f"c{i}" for i in range(config["n_classes"]))
    model = read(
        case.path / "weights.safetensors",
        f"encoder.dim={config['input_size']}",
        f"aggregator.dim={config['feat_size']}",
        f"aggregator.heads={config['n_heads']}",
        f"aggregator.positions={config['positional']}",
        f"head.classes=[{labels}]",
    )
    coords = inputs["coords"].round().long()
    with torch.no_grad():
        logits = model(wsizoo.Bag(inputs["features"], coords, spacing=896.0)).logits
    meta = {**case.meta, "tolerance": {"out.logits": case.tolerance["out.logits"]}}
    compare(Case(case.path, case.system, case.name, meta), {"out.logits": logits[None]})
    back = wsizoo.write_weights(model, tmp_path / "x.pt", FORMAT)
    written = torch.load(back, weights_only=True)
    assert written.keys() == case.weights().keys()
    assert all(torch.equal(tensor, written[key]) for key, tensor in case.weights().items())


@pytest.fixture
def saved(tmp_path):
    model = wsizoo.build(NAME, *SMALL, seed=3)
    return wsizoo.write_weights(model, tmp_path / "x.safetensors", FORMAT)


def test_weights_of_another_configuration_are_told_what_to_type(saved):
    with pytest.raises(
        StrictnessError, match=r"The file tells: 'aggregator\.dim=16'; .* was built otherwise"
    ):
        read(saved, *SMALL, "aggregator.dim=32")


def test_weights_of_another_number_of_classes_say_how_many(saved):
    with pytest.raises(
        StrictnessError, match=r"The file tells: 'head\.classes of 2 names'; .*_fc2"
    ):
        read(saved, *SMALL[:2], "head.classes=[a,b,c]")


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        (lambda tensors: tensors.update(extra=torch.ones(3)), "1 unexpected: extra"),
        (lambda tensors: tensors.pop("norm.weight"), r"1 missing: norm\.weight"),
    ],
)
def test_a_tensor_too_many_or_too_few_is_not_taken_for_another_configuration(saved, change, listed):
    tensors = load_file(saved)
    change(tensors)
    save_file(tensors, saved)
    message = (
        rf"As far as it tells it is of the configuration of .*: tensors were left .*; {listed}"
    )
    with pytest.raises(StrictnessError, match=message):
        read(saved, *SMALL)


def test_weights_of_another_head_are_refused(saved):
    with pytest.raises(
        SpecError, match=r"LongMIL weights have a classification head; .* has a survival head"
    ):
        read(saved, "encoder.dim=24", "aggregator.dim=16", "head={name: survival}")
    with pytest.raises(SpecError, match=r"have a classification head; .* has no head"):
        read(saved, "encoder.dim=24", "aggregator.dim=16", "head=null")


def test_a_file_of_something_else_tells_nothing():
    assert LongMILOfficial().overrides({}) == []
    assert LongMILOfficial().overrides({"_fc1.0.weight": torch.ones(3)}) == []
