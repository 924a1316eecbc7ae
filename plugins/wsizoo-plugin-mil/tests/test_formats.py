"""Published layouts: every one is read and written back, older files are read, others refused."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from wsizoo_plugin_mil.clam_format import ClamOfficial
from wsizoo_plugin_mil.mil_lab_format import TABLES, MILLab

import wsizoo
from wsizoo.conversion import convert_weights
from wsizoo.errors import NotFoundError, NotPinnedError, SpecError, StrictnessError
from wsizoo.registry import default as registry
from wsizoo.weight_formats import fill, find_layout

DATA = Path(os.environ.get("WSIZOO_DATA", "-"))
REAL = DATA / "mil_weights", DATA / "dsmil_weights"
needs_data = pytest.mark.skipif(
    not all(folder.is_dir() for folder in REAL), reason="no published weights: set WSIZOO_DATA"
)
CLASSES = "head.classes=[a,b,c]"
NARROW = ["encoder.dim=24", "aggregator.dim=16", CLASSES]
CLAM = [*NARROW, "aggregator.attention=8"]
LAB = "aggregator.variant=mil-lab"
FORMATS = [
    ("clam-official", "clam-sb-uni", CLAM),
    ("clam-official", "clam-sb-uni", [*CLAM, "aggregator.gated=false"]),
    ("clam-official", "clam-mb-uni", CLAM),
    ("dsmil-official", "dsmil-uni", ["encoder.dim=24", CLASSES]),
    ("dsmil-official", "dsmil-uni", ["encoder.dim=24", CLASSES, "aggregator.nonlinear=false"]),
    ("dsmil-official", "dsmil-uni", ["encoder.dim=24", CLASSES, "aggregator.passing_v=true"]),
    ("transmil-official", "transmil-uni", NARROW),
    ("attmil", "attmil-retccl", [*NARROW, "aggregator.attention=8"]),
    ("mil-lab", "abmil-feather-uni", ["encoder.dim=24", "aggregator.dim=16"]),
    ("mil-lab", "abmil-feather-uni2", ["aggregator.hidden=[20]", "aggregator.gated=false"]),
    ("mil-lab", "clam-sb-uni", [*CLAM, LAB]),
    ("mil-lab", "dsmil-uni", [*NARROW, LAB]),
    ("mil-lab", "transmil-uni", [*NARROW, LAB]),
    ("acmil-official", "acmil-ga-uni", NARROW),
    ("acmil-official", "acmil-ga-uni", [*NARROW, "aggregator.branches=1"]),
    ("acmil-official", "acmil-mha-uni", NARROW),
    ("acmil-official", "acmil-mha-uni", [*NARROW, "aggregator.branches=1"]),
    ("dtfd-official", "dtfd-uni", NARROW),
    ("dtfd-official", "dtfd-uni", [*NARROW, "aggregator.residuals=2"]),
    ("mil-lab", "dtfd-uni", [*NARROW, LAB]),
    ("mil-lab", "rrt-uni", [*NARROW, LAB, "aggregator.layers=3"]),
    ("mil-lab", "ilra-uni", [*NARROW, LAB]),
    ("mil-lab", "wikg-uni", [*NARROW, LAB]),
    ("wikg-official", "wikg-uni", [*NARROW, "aggregator.pool=attention"]),
    ("wikg-official", "wikg-uni", [*NARROW, "aggregator.mix=sage"]),
    ("ilra-official", "ilra-uni", [*NARROW, "aggregator.layers=3"]),
    ("ilra-official", "ilra-uni", [*NARROW, "aggregator.norm=false", "aggregator.rank=4"]),
    ("rrt-official", "rrt-uni", [*NARROW, "aggregator.layers=3", "aggregator.ffn=true"]),
    ("rrt-official", "rrt-uni", [*NARROW, "aggregator.slot_mlp=true", "aggregator.gated=true"]),
    ("rrt-official", "rrt-uni", [*NARROW, "aggregator.epeg=0", "aggregator.bias=true"]),
    ("mil-lab", "transformer-uni", [*NARROW, "aggregator.mlp=20"]),
    ("mil-lab", "transformer-uni", [*NARROW, "aggregator.mlp=0", "aggregator.layers=1"]),
    ("mhim-official", "mhim-abmil-uni", NARROW),
    ("mhim-official", "mhim-abmil-uni", [*NARROW, "aggregator.version=v1"]),
    ("mhim-official", "mhim-dsmil-uni", NARROW),
    ("mhim-official", "mhim-transmil-uni", NARROW),
]


@pytest.mark.parametrize(("name", "of", "overrides"), FORMATS, ids=str)
def test_what_is_written_is_read_again_and_predicts_the_same(name, of, overrides, tmp_path):
    model = wsizoo.build(of, *overrides, seed=3)
    file = wsizoo.write_weights(model, tmp_path / "x.pt", name)
    again = wsizoo.read_weights(file, name, of, *overrides)
    bag = wsizoo.Bag(torch.randn(30, model.in_dim))
    with torch.no_grad():
        one, two = model(bag), again(bag)
    torch.testing.assert_close(two.embedding, one.embedding)
    torch.testing.assert_close(two.scores, one.scores)
    if one.logits is not None:
        torch.testing.assert_close(two.logits, one.logits)
    convert_weights(file, name, of, *overrides, out=tmp_path / "model")
    wsizoo.verify(tmp_path / "model")


LOADED = {  # format: (model, how its authors' code takes what torch.load gives, a name in there)
    "dtfd-official": ("dtfd-uni", lambda c: c["att_classifier"], "classifier.fc.weight"),
    "acmil-official": ("acmil-ga-uni", lambda c: c["model"], "Slide_classifier.fc.weight"),
    "mhim-official": ("mhim-abmil-uni", lambda c: c["model"], "predictor.weight"),
    "rrt-official": ("rrt-uni", lambda c: c["model"], "predictor.weight"),
    "transmil-official": ("transmil-uni", lambda c: c["state_dict"], "model._fc2.weight"),
    "clam-official": ("clam-sb-uni", lambda c: c, "classifiers.weight"),
    "dsmil-official": ("dsmil-uni", lambda c: c, "b_classifier.fcc.weight"),
    "ilra-official": ("ilra-uni", lambda c: c, "pooling.S"),
    "wikg-official": ("wikg-uni", lambda c: c, "fc.weight"),
}


@pytest.mark.parametrize("name", LOADED)
def test_a_pickle_is_laid_out_as_the_authors_code_loads_it(name, tmp_path):
    of, taken, known = LOADED[name]
    overrides = ["encoder.dim=24", CLASSES, *(["aggregator.dim=16"] if of != "dsmil-uni" else [])]
    model = wsizoo.build(of, *overrides, seed=3)
    file = wsizoo.write_weights(model, tmp_path / "x.pth", name)
    content = torch.load(file)
    found = taken(content)
    assert known in found
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
    if name == "dtfd-official":
        assert set(content) == {"classifier", "dim_reduction", "attention", "att_classifier"}
        assert set(content["classifier"]) == {"fc.weight", "fc.bias"}
    flat = load_file(wsizoo.write_weights(model, tmp_path / "x.safetensors", name))
    again = wsizoo.read_weights(tmp_path / "x.safetensors", name, of, *overrides)
    assert flat.keys() == find_layout(name, again, registry().plugins).write(again).keys()


def test_files_of_another_number_of_classes_say_so(tmp_path):
    for of, name in (("clam-mb-uni", "clam-official"), ("clam-sb-uni", "clam-official")):
        model = wsizoo.build(of, *CLAM[:-1], "aggregator.attention=8", "head.classes=[a,b]")
        file = wsizoo.write_weights(model, tmp_path / f"{of}.pt", name)
        with pytest.raises(
            StrictnessError, match=r"The file is of 2 classes, '.*' has 3 \(a, b, c"
        ):
            wsizoo.read_weights(file, name, of, *CLAM)
    with pytest.raises(NotFoundError, match=r"named 'clam' .* Did you mean 'clam-official'\?"):
        wsizoo.read_weights(file, "clam", of, *CLAM)
    with pytest.raises(NotFoundError, match=r"Weight formats of clam-sb: clam-official, mil-lab\."):
        wsizoo.read_weights(file, "theirs", of, *CLAM)


def test_every_table_of_mil_lab_has_such_a_test():
    tested = {
        wsizoo.build(of, *given).spec.aggregator["name"]
        for n, of, given in FORMATS
        if n == "mil-lab"
    }
    assert tested == set(TABLES)


@pytest.mark.parametrize("gated", ["true", "false"])
def test_older_files_of_clam_are_read(gated):
    given = [*CLAM, f"aggregator.gated={gated}"]
    model, again = (wsizoo.build("clam-sb-uni", *given, seed=seed) for seed in (0, 1))
    older = {}
    for name, tensor in ClamOfficial().write(model).items():
        moved = name.replace("attention_net.3.module.3", "attention_net.3.module.2")
        moved = moved.replace("attention_net.3", "attention_net.2")
        older[moved.replace("attention_net.", "attention_net.module.")] = tensor
    fill(again, older, ClamOfficial(), "older")
    bag = wsizoo.Bag(torch.randn(9, 24))
    torch.testing.assert_close(again(bag).logits, model(bag).logits)


def test_files_of_clam_that_no_version_computes_are_refused():
    model = wsizoo.build("clam-mb-uni", *CLAM)
    tensors = ClamOfficial().write(model)
    one = {name: t for name, t in tensors.items() if not name.startswith("classifiers.")}
    one |= {"classifiers.weight": torch.zeros(3, 16), "classifiers.bias": torch.zeros(3)}
    with pytest.raises(StrictnessError, match="CLAM between commits d613a3d and 08bc929 of 2024"):
        fill(model, one, ClamOfficial(), "older")


def test_files_tell_of_their_configuration():
    given = ["encoder.dim=32", "aggregator.dim=24", "aggregator.attention=6", CLASSES]
    tensors = ClamOfficial().write(wsizoo.build("clam-mb-uni", *given))
    message = (
        r"tells: 'encoder=\{name: NAME, dim: 32\}' 'aggregator.dim=24' 'aggregator.attention=6' "
        r"'aggregator=clam-mb'"
    )
    with pytest.raises(StrictnessError, match=message):
        fill(wsizoo.build("clam-sb-uni", *CLAM), tensors, ClamOfficial(), "it")


def test_models_that_are_not_mil_lab_s_have_no_place_in_its_layout():
    with pytest.raises(SpecError, match=r"differs from MIL-Lab's clam-sb.*variant=mil-lab"):
        MILLab().write(wsizoo.build("clam-sb-uni", *CLAM))
    model = wsizoo.build("abmil-uni", "aggregator.standardise=true", CLASSES)
    with pytest.raises(SpecError, match=r"MIL-Lab has no place for aggregator.standard"):
        MILLab().write(model)


def test_feather_is_loaded_by_name_once_it_is_pinned(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("WSIZOO_PINS", str(tmp_path / "pins.json"))
    published = wsizoo.build("abmil-feather-uni", seed=4)
    file = wsizoo.write_weights(published, tmp_path / "model.safetensors", "mil-lab")
    hub.add_repo("MahmoodLab/abmil.base.uni.pc108-24k", {"model.safetensors": file.read_bytes()})
    with pytest.raises(NotPinnedError, match="Run: wsizoo pin abmil-feather-uni"):
        wsizoo.load("abmil-feather-uni")
    wsizoo.pin("abmil-feather-uni")
    bag = wsizoo.Bag(features(1024))
    model = wsizoo.load("abmil-feather-uni")
    assert model.head is None
    torch.testing.assert_close(model(bag).embedding, published(bag).embedding)
    tuned = wsizoo.adapt("abmil-feather-uni", "head=classification", CLASSES)
    torch.testing.assert_close(tuned(bag).embedding, published(bag).embedding)
    assert tuned(bag).logits.shape == (3,)
    wsizoo.save(tuned, tmp_path / "tuned")
    torch.testing.assert_close(wsizoo.load(tmp_path / "tuned")(bag).logits, tuned(bag).logits)


def features(dim):
    return torch.randn(40, dim, generator=torch.Generator().manual_seed(0))


@needs_data
def test_clam_s_demonstration_predicts():
    file = REAL[0] / "clam_sb_heatmap_demo.safetensors"
    model = wsizoo.read_weights(file, "clam-official", "clam-sb-resnet50", "head.classes=[n,t]")
    x, w = features(1024), load_file(file)
    w = {name.replace("attention_net.module.", ""): tensor for name, tensor in w.items()}

    def linear(name, of):
        return of @ w[f"{name}.weight"].t() + w[f"{name}.bias"]

    h = linear("0", x).relu()
    hidden = linear("3.attention_a.0", h).tanh() * linear("3.attention_b.0", h).sigmoid()
    expected = linear("classifiers", linear("3.attention_c", hidden).softmax(0).t() @ h)[0]
    with torch.no_grad():
        torch.testing.assert_close(model(wsizoo.Bag(x)).logits, expected)


@needs_data
@pytest.mark.parametrize(
    ("file", "head"),
    [
        ("attmil_crc_msi_quasar_0", ["head.classes=[MSIH,nonMSIH]"]),
        ("attmil_crc_survival_dachs", ["head=cox"]),
    ],
)
def test_attmil_s_published_weights_predict(file, head):
    file = REAL[0] / f"{file}.safetensors"
    model = wsizoo.read_weights(file, "attmil", "attmil-retccl", *head)
    x, w = features(2048), load_file(file)
    h = (x @ w["encoder.0.weight"].t() + w["encoder.0.bias"]).relu()
    hidden = (h @ w["attention.0.weight"].t() + w["attention.0.bias"]).tanh()
    score = hidden @ w["attention.2.weight"].t() + w["attention.2.bias"]
    slide = score.softmax(0).t() @ h
    spread = (w["head.1.running_var"] + 1e-5).sqrt()
    slide = (slide - w["head.1.running_mean"]) / spread * w["head.1.weight"] + w["head.1.bias"]
    expected = (slide @ w["head.3.weight"].t() + w["head.3.bias"])[0]
    with torch.no_grad():
        torch.testing.assert_close(model(wsizoo.Bag(x)).logits, expected, rtol=1e-4, atol=1e-4)


@needs_data
def test_dsmil_s_camelyon_weights_predict():
    file = REAL[1] / "c16_aggregator.safetensors"
    model = wsizoo.read_weights(file, "dsmil-official", "dsmil-simclr-c16")
    assert model.requires.encoder == "simclr-resnet18-c16"
    assert (model.classes, model.head.threshold) == (["normal", "tumour"], 0.5282700061798096)
    x, w = features(512), load_file(file)
    s = x @ w["i_classifier.fc.0.weight"].t() + w["i_classifier.fc.0.bias"]
    q = (x @ w["b_classifier.q.0.weight"].t() + w["b_classifier.q.0.bias"]).relu()
    q = (q @ w["b_classifier.q.2.weight"].t() + w["b_classifier.q.2.bias"]).tanh()
    a = (q @ q[s[:, 0].argmax()] / 128**0.5).softmax(0)
    expected = a @ x @ w["b_classifier.fcc.weight"][0, 0] + w["b_classifier.fcc.bias"]
    with torch.no_grad():
        output = model(wsizoo.Bag(x))
    torch.testing.assert_close(output.logits, expected)
    torch.testing.assert_close(output.instance_logits, s)


@needs_data
def test_dsmil_s_published_start_is_the_one_that_is_named():
    with pytest.raises(StrictnessError, match=r"starts from \(init.pth\), no trained model"):
        wsizoo.read_weights(REAL[1] / "init.safetensors", "dsmil-official", "dsmil-simclr-c16")


def test_what_dsmil_s_training_starts_from_is_no_model(tmp_path):
    names = "b_classifier.q", "b_classifier.v.1"
    start = {f"{n}.{end}": torch.zeros(4) for n in names for end in ("weight", "bias")}
    save_file(start, tmp_path / "init.safetensors")
    message = r"no classifier: it is what training starts from \(init.pth\).*-m dsmil-simclr-c16"
    with pytest.raises(StrictnessError, match=message):
        wsizoo.read_weights(
            tmp_path / "init.safetensors", "dsmil-official", "dsmil-uni", "head.classes=[a,b]"
        )


def test_the_names_that_dsmil_s_tests_give_are_read(tmp_path):
    model = wsizoo.build("dsmil-uni", "encoder.dim=24", CLASSES)
    file = wsizoo.write_weights(model, tmp_path / "x.safetensors", "dsmil-official")
    tensors = {
        n.replace("i_classifier.fc.0", "i_classifier.fc"): t for n, t in load_file(file).items()
    }
    save_file(tensors, tmp_path / "y.safetensors")
    given = "dsmil-official", "dsmil-uni", "encoder.dim=24", CLASSES
    again = wsizoo.read_weights(tmp_path / "y.safetensors", *given)
    bag = wsizoo.Bag(torch.randn(9, 24))
    torch.testing.assert_close(again(bag).logits, model(bag).logits)
