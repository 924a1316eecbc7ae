"""save, verify, push: what comes back is what was there, and nothing unsound goes out."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner
from torch import Tensor

import wsizoo
from wsizoo.bag import Bag
from wsizoo.cli import cli
from wsizoo.errors import DataError, DigestError, NotFoundError, WeightsError
from wsizoo.files import sha256_of
from wsizoo.model import SlideModel
from wsizoo.plugins import discover
from wsizoo.publish import as_published, golden_bag
from wsizoo.registry import Entry, Registry
from wsizoo.spec import model_spec
from wsizoo.testing.hub import HubDouble
from wsizoo.weights import read_tensors, write_tensors

FILES = {"config.json", "model.safetensors", "golden.safetensors", "README.md"}
OUTPUTS = ("logits", "instance_logits", "hazards", "risk", "value", "embedding", "scores")
CLASSES = "[normal,tumour]"
TOY = {
    "summary": "a toy",
    "licence": "MIT",
    "source": "a test",
    "encoder": {"name": "made-up", "dim": 8, "mpp": 0.5},
    "aggregator": {"name": "abmil", "dim": 6, "attention": 4},
    "head": {"name": "classification", "classes": ["normal", "tumour"]},
}


@pytest.fixture(scope="module")
def registry() -> Registry:
    registry = Registry.of(discover([]))
    registry.models["toy"] = Entry("toy", dict(TOY), "a test")
    return registry


@pytest.fixture
def model(registry: Registry) -> SlideModel:
    made = wsizoo.build("toy", seed=1, registry=registry)
    made.trained = True
    return made


@pytest.fixture
def folder(model: SlideModel, tmp_path: Path) -> Path:
    return wsizoo.save(model, tmp_path / "model")


def outputs(model: SlideModel, bag: Bag) -> dict[str, Tensor]:
    with torch.no_grad():
        output = model(bag)
    values = {name: getattr(output, name) for name in OUTPUTS}
    return {name: value for name, value in values.items() if value is not None}


def assert_equal(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


def rewrite(folder: Path, file: str, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors and record the digest, as somebody who means it would."""
    write_tensors(folder / file, tensors, metadata)
    config = config_of(folder)
    field = "golden" if file.startswith("golden") else "weights"
    config[field]["sha256"] = sha256_of(folder / file)
    (folder / "config.json").write_text(json.dumps(config))


# save


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        ((), {"logits", "embedding", "scores"}),
        (("head=survival", "head.bins=3"), {"logits", "hazards", "risk", "embedding", "scores"}),
        (
            ("head=segmentation", f"head.classes={CLASSES}"),
            {"instance_logits", "embedding", "scores"},
        ),
        (("head=regression",), {"logits", "value", "embedding", "scores"}),
        (("head=null",), {"embedding", "scores"}),
        (("aggregator=mean", "head=null"), {"embedding", "scores"}),
        (("aggregator=max", "aggregator.dim=null"), {"logits", "embedding", "scores"}),
    ],
)
def test_a_model_comes_back_bit_for_bit(
    registry: Registry, tmp_path: Path, overrides: tuple[str, ...], given: set[str]
) -> None:
    model = wsizoo.build("toy", *overrides, seed=3, registry=registry)
    model.trained = True
    bag = Bag(torch.randn(5, 8))
    before = outputs(model, bag)
    assert before.keys() == given
    loaded = wsizoo.load(wsizoo.save(model, tmp_path / "model"), registry=registry)
    assert_equal(outputs(loaded, bag), before)
    assert loaded.classes == model.classes
    assert loaded.requires == model.requires
    assert not loaded.training
    assert loaded.trained
    assert set(wsizoo.verify(tmp_path / "model", registry).outputs) == given


def test_a_folder_holds_four_files_and_data_only(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == FILES
    config = config_of(folder)
    assert config["spec"]["aggregator"] == TOY["aggregator"]
    assert config["fingerprint"] == {"encoder": "made-up", "mpp": 0.5}
    for field in ("weights", "golden"):
        assert config[field]["sha256"] == sha256_of(folder / config[field]["file"])
    told = json.loads(read_tensors(folder / "model.safetensors")[1]["wsizoo"])
    assert told["fingerprint"] == config["fingerprint"]


def test_saving_twice_gives_the_same_bytes(model: SlideModel, tmp_path: Path) -> None:
    one, two = wsizoo.save(model, tmp_path / "one"), wsizoo.save(model, tmp_path / "two")
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in FILES)


def test_saving_leaves_the_model_as_it_was(model: SlideModel, tmp_path: Path) -> None:
    model.train()
    assert model.aggregator is not None
    model.aggregator.eval()
    random = torch.random.get_rng_state()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    wsizoo.save(model, tmp_path / "model")
    assert model.training
    assert not model.aggregator.training
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


def test_a_given_golden_bag_is_kept_whole(
    model: SlideModel, registry: Registry, tmp_path: Path
) -> None:
    bag = Bag(torch.randn(3, 8), torch.arange(6).view(3, 2) * 100, 100.0, 90.0, mpp=0.25)
    wsizoo.save(model, tmp_path / "model", golden=bag)
    tensors, metadata = read_tensors(tmp_path / "model" / "golden.safetensors")
    assert torch.equal(tensors["in.features"], bag.features)
    assert bag.coords is not None and torch.equal(tensors["in.coords"], bag.coords)
    assert json.loads(metadata["bag"]) == {"spacing": 100.0, "footprint": 90.0, "mpp": 0.25}
    assert wsizoo.verify(tmp_path / "model", registry).name == "toy"


def test_the_golden_bag_is_the_same_every_time_and_of_the_kind_that_is_read(
    model: SlideModel,
) -> None:
    one, two = golden_bag(model), golden_bag(model)
    assert one.features.shape == (32, 8)
    assert torch.equal(one.features, two.features)
    assert len(torch.unique(one.require_unique_cells(), dim=0)) == 32
    model.aggregator.__dict__["reads"] = "pixels"
    pixels = golden_bag(model)
    assert pixels.features.dtype == torch.uint8
    assert pixels.features.shape == (2, 3, 224, 224)


@pytest.mark.parametrize("moment", ["weights", "card", "rename"])
def test_an_interrupted_save_leaves_nothing_and_keeps_the_old_model(
    model: SlideModel,
    registry: Registry,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    rename = os.rename

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    def refuse_new(source: Path, to: Path) -> None:
        if Path(to) in (folder, folder.parent / "new") and ".old." not in Path(source).name:
            raise KeyboardInterrupt
        rename(source, to)

    if moment == "rename":
        monkeypatch.setattr(os, "rename", refuse_new)
    else:
        name = {"weights": "write_tensors", "card": "model_card"}[moment]
        monkeypatch.setattr(f"wsizoo.publish.{name}", interrupt)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = wsizoo.build("toy", seed=2, registry=registry)
    for target in (folder, folder.parent / "new"):
        with pytest.raises(KeyboardInterrupt):
            wsizoo.save(other, target, overwrite=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_a_model_is_replaced_only_on_purpose(
    model: SlideModel, registry: Registry, folder: Path
) -> None:
    other = wsizoo.build("toy", seed=2, registry=registry)
    with pytest.raises(DataError, match=r"holds a model already: save\(\.\.\., overwrite=True\)"):
        wsizoo.save(other, folder)
    wsizoo.save(other, folder, overwrite=True)
    bag = Bag(torch.randn(4, 8))
    assert_equal(outputs(wsizoo.load(folder, registry=registry), bag), outputs(other, bag))
    (folder.parent / "empty").mkdir()
    assert wsizoo.save(other, folder.parent / "empty").is_dir()


@pytest.mark.parametrize("name", ["thesis.tex", "config.json", "sub/thesis.tex"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_foreign_folder_is_never_replaced(
    model: SlideModel, tmp_path: Path, name: str, overwrite: bool
) -> None:
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"model_type": "vit"}')
    with pytest.raises(DataError, match=r"mine' exists and is no saved model; choose another"):
        wsizoo.save(model, tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(DataError, match="exists and is no saved model"):
        wsizoo.save(model, path, overwrite=overwrite)
    assert path.read_text() == '{"model_type": "vit"}'


def test_what_lies_beside_a_model_is_never_lost(model: SlideModel, folder: Path) -> None:
    (folder / "notes.txt").touch()
    with pytest.raises(DataError, match=r"holds notes\.txt beside a model, which would be lost"):
        wsizoo.save(model, folder, overwrite=True)
    assert (folder / "notes.txt").exists()


@pytest.mark.parametrize(
    "training", [{"auc": float("nan")}, {"folder": Path("x")}, {"auc": torch.tensor(1.0)}]
)
def test_facts_that_are_no_json_are_refused(
    model: SlideModel, tmp_path: Path, training: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match=r"cannot be written as JSON: .*Give text, finite numbers"):
        wsizoo.save(model, tmp_path / "model", training=training)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_gives_nan_is_not_saved(model: SlideModel, tmp_path: Path) -> None:
    with torch.no_grad():
        model.inference_state()["head.linear.bias"].fill_(float("nan"))
    with pytest.raises(DataError, match=r"'toy' gives NaN or infinite logits for the golden bag"):
        wsizoo.save(model, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


# verify


def test_verify_replays_every_output(folder: Path, registry: Registry) -> None:
    found = wsizoo.verify(folder, registry)
    assert found.name == "toy"
    assert set(found.outputs) == {"logits", "embedding", "scores"}
    assert max(found.outputs.values()) < 1e-6  # the last bit depends on where tensors lie in memory
    assert wsizoo.verify("abmil-demo").outputs["logits"] < 1e-4


@pytest.mark.parametrize("file", ["model.safetensors", "golden.safetensors"])
def test_verify_catches_an_altered_file(folder: Path, registry: Registry, file: str) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DigestError, match=f"{file} has sha256"):
        wsizoo.verify(folder, registry)


def test_verify_catches_weights_that_were_swapped_consistently(
    folder: Path, registry: Registry
) -> None:
    tensors, metadata = read_tensors(folder / "model.safetensors")
    tensors["aggregator.value.weight"] *= 1.1
    rewrite(folder, "model.safetensors", tensors, metadata)
    assert wsizoo.load(folder, registry=registry).trained
    with pytest.raises(WeightsError, match=r"of the golden bag is off by .* recorded one; this co"):
        wsizoo.verify(folder, registry)


def test_verify_catches_another_computation(folder: Path, registry: Registry) -> None:
    config = config_of(folder)
    config["spec"]["aggregator"] = {"name": "abmil", "dim": 6, "attention": 4, "gated": False}
    (folder / "config.json").write_text(json.dumps(config))
    tensors, metadata = read_tensors(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if "gate" not in key}
    rewrite(folder, "model.safetensors", kept, metadata)
    with pytest.raises(WeightsError, match=r"of the golden bag is off by .*: wsizoo plugins$"):
        wsizoo.verify(folder, registry)


def test_verify_names_an_output_that_is_no_longer_given(folder: Path, registry: Registry) -> None:
    tensors, metadata = read_tensors(folder / "golden.safetensors")
    rewrite(folder, "golden.safetensors", {**tensors, "out.risk": torch.zeros(())}, metadata)
    with pytest.raises(WeightsError, match=r"the model no longer gives risk \(\)"):
        wsizoo.verify(folder, registry)
    wrong = {**tensors, "out.logits": torch.zeros(3)}
    rewrite(folder, "golden.safetensors", wrong, metadata)
    with pytest.raises(WeightsError, match=r"no longer gives logits \(3,\)"):
        wsizoo.verify(folder, registry)


def test_verify_refuses_a_golden_file_that_shows_nothing(folder: Path, registry: Registry) -> None:
    tensors, metadata = read_tensors(folder / "golden.safetensors")
    for kept in ("in.features", "out.logits"):
        rewrite(folder, "golden.safetensors", {kept: tensors[kept]}, metadata)
        with pytest.raises(WeightsError, match="records no bag or no outputs: save it again"):
            wsizoo.verify(folder, registry)
    rewrite(folder, "golden.safetensors", tensors, {"bag": "3"})
    with pytest.raises(WeightsError, match="golden bag holds damaged metadata"):
        wsizoo.verify(folder, registry)
    config = config_of(folder)
    del config["golden"]
    (folder / "config.json").write_text(json.dumps(config))
    assert wsizoo.load(folder, registry=registry).trained
    with pytest.raises(WeightsError, match=r"carries no golden bag to replay"):
        wsizoo.verify(folder, registry)


def test_a_half_precision_model_is_verified_at_its_own_precision(
    model: SlideModel, registry: Registry, tmp_path: Path
) -> None:
    wsizoo.save(model.to(torch.bfloat16), tmp_path / "model")
    found = wsizoo.verify(tmp_path / "model", registry)
    assert 0 < max(found.outputs.values()) < 0.05


# push


@pytest.fixture
def lab(hub: HubDouble, monkeypatch: pytest.MonkeyPatch) -> HubDouble:
    hub.add_token("hf_secret", "lab")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return hub


def test_a_pushed_model_comes_back_through_its_address(
    lab: HubDouble, model: SlideModel, registry: Registry
) -> None:
    address = wsizoo.push(model, "lab/toy", registry=registry)
    commit = address.removeprefix("hf:lab/toy@")
    assert set(lab.files("lab/toy", commit)) == FILES | {".gitattributes"}
    assert lab.repo("lab/toy").private
    loaded = wsizoo.load(address, registry=registry)
    bag = Bag(torch.randn(4, 8))
    assert_equal(outputs(loaded, bag), outputs(model, bag))
    assert wsizoo.verify(address, registry).outputs["logits"] < 1e-6
    wsizoo.adapt(address, "head.classes=[a,b,c]", registry=registry)


def test_a_pushed_folder_brings_only_what_save_wrote(
    lab: HubDouble, folder: Path, registry: Registry
) -> None:
    (folder / "patients.csv").write_text("name\n")
    (folder / "README.md").write_text("---\nlicense: mit\n---\nedited by hand\n")
    wsizoo.push(folder, "lab/toy", private=False, message="First", registry=registry)
    files = lab.files("lab/toy")
    assert set(files) == FILES | {".gitattributes"}
    assert b"edited by hand" in files["README.md"]
    assert not lab.repo("lab/toy").private


def test_name_and_licence_are_restated_on_the_card_and_in_the_config(
    lab: HubDouble, folder: Path, registry: Registry
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    address = wsizoo.push(folder, "lab/mine", name="mine", licence="CC-BY-4.0", registry=registry)
    published = lab.files("lab/mine")
    front = yaml.safe_load(published["README.md"].decode().split("---\n")[1])
    assert front["license"] == "cc-by-4.0"
    assert b"# mine\n" in published["README.md"]
    assert json.loads(published["config.json"])["spec"]["licence"] == "CC-BY-4.0"
    assert wsizoo.load(address, registry=registry).name == "mine"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    (folder / "README.md").write_text("by hand")
    with pytest.raises(DataError, match=r"README.md' was edited, and a name or licence would"):
        wsizoo.push(folder, "lab/mine", licence="MIT", registry=registry)


def test_a_dry_run_shows_the_card_and_publishes_nothing(lab: HubDouble, folder: Path) -> None:
    told = ["push", str(folder), "lab/none", "--license", "CC0-1.0", "--dry-run"]
    result = CliRunner().invoke(cli, told)
    assert result.exit_code == 0, result.output
    assert "license: cc0-1.0" in result.stdout
    assert "model.safetensors, " in result.stderr
    as_json = json.loads(CliRunner().invoke(cli, [*told, "--json"]).stdout)
    assert set(as_json["files"]) == FILES
    assert "lab/none" not in lab.repos


def test_a_folder_that_holds_a_model_among_other_things_is_told_so(
    model: SlideModel, registry: Registry, tmp_path: Path
) -> None:
    wsizoo.save(model, tmp_path / "demo" / "model")
    (tmp_path / "demo" / "prediction").mkdir()
    (tmp_path / "demo" / "prediction" / "run.json").write_text("{}")  # of wsizoo predict
    with pytest.raises(DataError, match=r"no run of one; it holds 1 \(model\): name one, .*model$"):
        wsizoo.push(tmp_path / "demo", "lab/toy", registry=registry)


def test_what_does_not_verify_is_not_published(
    lab: HubDouble, folder: Path, registry: Registry
) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DigestError, match=r"model\.safetensors has sha256"):
        wsizoo.push(folder, "lab/toy", registry=registry)
    with pytest.raises(NotFoundError, match="No model at"):
        wsizoo.push(folder / "none", "lab/toy", registry=registry)
    assert lab.log == []


def test_random_weights_are_published_only_on_purpose(
    lab: HubDouble, registry: Registry, tmp_path: Path
) -> None:
    model = wsizoo.build("toy", registry=registry)
    folder = wsizoo.save(model, tmp_path / "model")
    for source in (model, folder):
        with pytest.raises(
            DataError,
            match=r"'toy' was saved with trained=False, so it was not pub.*wsizoo push --untrained",
        ):
            wsizoo.push(source, "lab/toy", registry=registry)
    assert lab.log == []
    address = wsizoo.push(model, "lab/toy", untrained=True, registry=registry)
    assert not wsizoo.load(address, registry=registry).trained
    assert b"**Not trained: its weights are random.**" in lab.files("lab/toy")["README.md"]


def test_publishing_again_moves_the_address(
    lab: HubDouble, model: SlideModel, registry: Registry
) -> None:
    first = wsizoo.push(model, "lab/toy", registry=registry)
    assert wsizoo.push(model, "lab/toy", registry=registry) == first
    other = wsizoo.build("toy", seed=9, registry=registry)
    other.trained = True
    second = wsizoo.push(other, "lab/toy", registry=registry)
    assert first != second
    bag = Bag(torch.randn(4, 8))
    assert_equal(outputs(wsizoo.load(first, registry=registry), bag), outputs(model, bag))


def test_the_token_is_in_no_message_or_log(
    lab: HubDouble,
    model: SlideModel,
    registry: Registry,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    wsizoo.push(model, "lab/toy", registry=registry)
    with pytest.raises(WeightsError, match=r"'lab' has no right to write to 'other/toy'") as error:
        wsizoo.push(model, "other/toy", registry=registry)
    captured = capfd.readouterr()
    told = caplog.text + captured.out + captured.err + repr(error.value)
    assert "hf_secret" not in told


# The card


def card_of(folder: Path) -> tuple[dict[str, Any], str]:
    _, front, body = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_tells_the_hub_and_the_reader(model: SlideModel, tmp_path: Path) -> None:
    facts = {"data": "16 slides", "auc": 0.9, "limits": "Not for patients: a toy."}
    front, body = card_of(wsizoo.save(model, tmp_path / "model", training=facts))
    assert front == {
        "library_name": "wsizoo",
        "license": "mit",
        "pipeline_tag": "image-classification",
        "tags": [
            "wsizoo",
            "histopathology",
            "whole-slide-image",
            "multiple-instance-learning",
            "abmil",
        ],
    }
    for told in (
        "# toy",
        "made-up -> abmil -> classification",
        "encoder `made-up`, mpp `0.5`",
        "- data: 16 slides",
        "- auc: 0.9",
        "Not for patients: a toy.",
        "Source of the method: a test",
    ):
        assert told in body
    assert "- limits" not in body


def test_what_trained_weights_hold_of_the_training_slides_is_told(
    model: SlideModel,
    registry: Registry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(type(model.aggregator), "discloses", "the label of each", raising=False)
    model.trained = True
    folder = wsizoo.save(model, tmp_path / "model")
    assert config_of(folder)["discloses"] == ["the label of each"]
    with as_published(folder, registry=registry) as prepared:
        assert "**Its weights hold the label of each.**" in (prepared / "README.md").read_text()
    assert "the weights of 'toy' hold the label of each: they are published" in caplog.text
    model.trained = False
    assert "discloses" not in config_of(wsizoo.save(model, tmp_path / "random"))


def test_the_card_says_what_is_not_stated(registry: Registry, tmp_path: Path) -> None:
    record = {
        **TOY,
        "licence": "Lab internal: ask",
        "head": {"name": "segmentation", "classes": ["a", "b"]},
    }
    own = Registry(registry.plugins, {"toy": Entry("toy", record, "a test")})
    model = wsizoo.build("toy", registry=own)
    model.requires = wsizoo.Fingerprint()
    front, body = card_of(wsizoo.save(model, tmp_path / "model"))
    assert front["license"] == "other"
    assert front["license_name"] == "Lab internal: ask"
    assert front["pipeline_tag"] == "image-segmentation"
    assert "Not stated by the publisher." in body
    assert "What made its features is not stated" in body
    assert "Research only. Not validated for diagnosis." in body


def test_what_the_publisher_stated_stays_with_the_model(tmp_path: Path) -> None:
    model = wsizoo.load("abmil-demo")
    assert "synthetic" in model.facts["limits"]
    again = wsizoo.load(wsizoo.save(model, tmp_path / "copy"))
    assert again.facts == model.facts
    silent = wsizoo.load(wsizoo.save(model, tmp_path / "silent", training={}))
    assert silent.facts == {}


class Counted(wsizoo.WholeModel):
    """It settles how many outputs it has while it is made."""

    def __init__(self, in_dim: int, n: int | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(in_dim, 3 if n is None else n)

    def forward(self, bag: Bag) -> wsizoo.SlideOutput:
        return wsizoo.SlideOutput(embedding=self.linear(bag.features).mean(0))

    def published_params(self) -> dict[str, Any]:
        return {"n": self.linear.out_features}


def test_what_a_whole_model_settled_is_saved(tmp_path: Path, registry: Registry) -> None:
    spec = {**TOY, "aggregator": None, "head": None, "model": {"name": "counted"}}
    model = SlideModel("toy", model_spec("toy", spec), 8, whole=Counted(8))
    folder = wsizoo.save(model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["spec"]["model"] == {"name": "counted", "n": 3}
    told = json.loads(read_tensors(folder / "model.safetensors")[1]["wsizoo"])
    assert told["spec"] == config["spec"]
