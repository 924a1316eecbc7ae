"""read_weights, write_weights, convert: files of other people's code into our layout, and back."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

import wsizoo
from tests.toy_layout import Toy, assert_same, build, toy_registry, weight_format
from wsizoo.cli import cli
from wsizoo.conversion import convert_weights
from wsizoo.errors import DataError, NotFoundError, StrictnessError, WeightsError
from wsizoo.files import sha256_of
from wsizoo.model import SlideModel
from wsizoo.publish import Verified
from wsizoo.registry import Registry
from wsizoo.weights import read_tensors, write_tensors

FORMAT = "toy-official"
ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


class Inside(Toy):
    """The tensors are under `model`, in pickles."""

    def container(self, tensors: dict[str, Tensor]) -> dict[str, Any]:
        return {"model": tensors}


@pytest.fixture(scope="module")
def registry() -> Registry:
    return toy_registry(weight_format(FORMAT, Toy))


@pytest.fixture
def model(registry: Registry) -> SlideModel:
    return build(registry, seed=1)


@pytest.fixture
def published(model: SlideModel, tmp_path: Path) -> Path:
    write_tensors(tmp_path / "theirs.safetensors", Toy().write(model), {})
    return tmp_path / "theirs.safetensors"


@pytest.fixture
def cli_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Registry:
    for module in ("conversion", "publish", "zoo", "cli.zoo"):
        monkeypatch.setattr(f"wsizoo.{module}.default", lambda: registry)
    return registry


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="wsizoo")


def read(path: Path, registry: Registry, *overrides: str) -> SlideModel:
    return wsizoo.read_weights(path, FORMAT, "toy", *overrides, registry=registry)


def tensors_of(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_model_goes_out_and_comes_back_number_for_number(
    registry: Registry, model: SlideModel, tmp_path: Path, ending: str
) -> None:
    path = wsizoo.write_weights(model, tmp_path / f"x{ending}", FORMAT, registry=registry)
    found = tensors_of(path)
    assert found.keys() == Toy().write(model).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in Toy().write(model).items())
    again = read(path, registry)
    assert_same(again, model)
    assert again.trained and not again.training
    facts = {"read from": path.name, "its sha256": sha256_of(path), "its format": FORMAT}
    assert again.facts == facts


def test_a_pickle_holds_no_more_than_its_tensors(
    registry: Registry, model: SlideModel, tmp_path: Path
) -> None:
    """The transposed matrix and the vector that stands twice are views of the model's tensors."""
    path = wsizoo.write_weights(model, tmp_path / "x.pt", FORMAT, registry=registry)
    for tensor in tensors_of(path).values():
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        assert not tensor.requires_grad


def test_what_nothing_reads_is_carried_along_and_written_again(
    registry: Registry, model: SlideModel, tmp_path: Path
) -> None:
    theirs = {**Toy().write(model), "loss.weight": torch.tensor([3.0, 1.0, 4.0])}
    write_tensors(tmp_path / "x.safetensors", theirs, {})
    convert_weights(
        tmp_path / "x.safetensors", FORMAT, "toy", out=tmp_path / "m", registry=registry
    )
    loaded = wsizoo.load(tmp_path / "m", registry=registry)
    assert_same(loaded, model)
    wsizoo.save(loaded, tmp_path / "again")
    loaded = wsizoo.load(tmp_path / "again", registry=registry)
    back = wsizoo.write_weights(loaded, tmp_path / "y.safetensors", FORMAT, registry=registry)
    assert back.read_bytes() == (tmp_path / "x.safetensors").read_bytes()
    adapted = wsizoo.adapt(tmp_path / "m", "head.classes=[a,b,c]", registry=registry)
    assert adapted.unused == {}


@pytest.mark.parametrize("inside", ["state_dict", "model_state_dict", "model"])
def test_a_training_checkpoint_is_read(
    registry: Registry, model: SlideModel, tmp_path: Path, inside: str
) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in Toy().write(model).items()}
    torch.save({inside: tensors, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "x.pt")
    assert_same(read(tmp_path / "x.pt", registry), model)


def test_a_pickle_is_laid_out_as_their_code_loads_it(model: SlideModel, tmp_path: Path) -> None:
    registry = toy_registry(weight_format(FORMAT, Inside))
    pickled, flat = (
        wsizoo.write_weights(model, tmp_path / name, FORMAT, registry=registry)
        for name in ("x.pt", "x.safetensors")
    )
    assert tensors_of(pickled).keys() == {"model"}
    assert tensors_of(flat).keys() == Toy().write(model).keys()
    for path in (pickled, flat):
        assert_same(read(path, registry), model)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_numbers_that_are_none_are_refused(
    registry: Registry, model: SlideModel, tmp_path: Path, ending: str
) -> None:
    path = wsizoo.write_weights(model, tmp_path / f"x{ending}", FORMAT, registry=registry)
    tensors = {name: tensor.clone() for name, tensor in tensors_of(path).items()}
    tensors["loss.weight"][1] = torch.nan  # which nothing reads
    save = torch.save if ending == ".pt" else lambda t, p: write_tensors(p, t, {})
    save(tensors, path)
    with pytest.raises(
        WeightsError, match=r"x\.\w+' holds NaN or infinite values in loss\.weight:"
    ):
        read(path, registry)
    tensors["fc.bias"][0] = torch.inf
    save(tensors, path)
    with pytest.raises(WeightsError, match=r"values in fc\.bias and 1 more: its training failed"):
        read(path, registry)


def test_a_damaged_or_foreign_file_is_named(
    registry: Registry, published: Path, tmp_path: Path
) -> None:
    published.write_bytes(published.read_bytes()[:-8])
    with pytest.raises(WeightsError, match=r"theirs\.safetensors cannot be read as safetensors"):
        read(published, registry)
    with pytest.raises(NotFoundError, match=r"No file of weights at '.*nowhere\.pt'"):
        read(tmp_path / "nowhere.pt", registry)
    torch.save({"fc.bias": torch.ones(2), 7: "seven"}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"x\.pt holds '7' where tensors are expected"):
        read(tmp_path / "x.pt", registry)


def test_weights_of_another_configuration_are_told_what_to_type(
    registry: Registry, tmp_path: Path
) -> None:
    other = build(registry, "aggregator.dim=5")
    path = wsizoo.write_weights(other, tmp_path / "x.pt", FORMAT, registry=registry)
    with pytest.raises(
        StrictnessError, match=r"weights of 'x\.pt' do not .*The file tells: 'aggregator\.dim=5'"
    ):
        read(path, registry)
    assert_same(read(path, registry, "aggregator.dim=5"), other)


def test_files_are_not_replaced_by_accident(
    registry: Registry, model: SlideModel, published: Path
) -> None:
    before = published.read_bytes()
    with pytest.raises(DataError, match=r"theirs\.safetensors' exists: overwrite=True, --overwri"):
        wsizoo.write_weights(model, published, FORMAT, registry=registry)
    assert published.read_bytes() == before
    other = build(registry, seed=2)
    wsizoo.write_weights(other, published, FORMAT, overwrite=True, registry=registry)
    assert_same(read(published, registry), other)
    with pytest.raises(DataError, match=r"x\.onnx' must end in \.safetensors, \.bin, \.ckpt, \.pt"):
        wsizoo.write_weights(model, published.with_name("x.onnx"), FORMAT, registry=registry)


@pytest.mark.parametrize("ending", [".safetensors", ".pt"])
def test_an_interrupted_file_leaves_nothing(
    registry: Registry,
    model: SlideModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    def half(content: Any, path: Path, *_: Any) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    monkeypatch.setattr("wsizoo.conversion.write_tensors", lambda p, t, m: half(t, p))
    with pytest.raises(KeyboardInterrupt):
        wsizoo.write_weights(model, tmp_path / f"x{ending}", FORMAT, registry=registry)
    assert list(tmp_path.iterdir()) == []


def test_a_converted_folder_is_verified_and_loads(
    registry: Registry, model: SlideModel, published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    found = convert_weights(published, FORMAT, "toy", out=out, registry=registry)
    assert isinstance(found, Verified) and found.name == "toy"
    assert found.outputs.keys() == {"logits", "embedding", "scores"}
    loaded = wsizoo.load(out, registry=registry)
    assert_same(loaded, model)
    assert loaded.trained
    card = (out / "README.md").read_text()
    assert "license: unknown" in card and "nobody has stated" in card
    assert f"- read from: theirs.safetensors\n- its sha256: {sha256_of(published)}" in card.replace(
        "\n\n", "\n"
    )
    with pytest.raises(DataError, match="holds a model already"):
        convert_weights(published, FORMAT, "toy", out=out, registry=registry)
    convert_weights(published, FORMAT, "toy", out=out, overwrite=True, registry=registry)


def test_a_licence_that_is_said_is_that_of_the_weights(registry: Registry, published: Path) -> None:
    assert read(published, registry).spec.licence == "unknown"
    assert read(published, registry, "licence=GPL-3.0").spec.licence == "GPL-3.0"


@pytest.mark.parametrize("fails", ["save", "verify"])
def test_a_conversion_that_fails_leaves_what_was_there(
    registry: Registry,
    published: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: str,
) -> None:
    out = wsizoo.save(build(registry, seed=5), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def failing(*_: Any) -> None:
        raise WeightsError("logits of the golden bag is off")

    monkeypatch.setattr(f"wsizoo.conversion.{fails}", failing)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(WeightsError, match="golden bag is off"):
            convert_weights(published, FORMAT, "toy", out=folder, overwrite=True, registry=registry)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"model", published.name}


def test_the_command_converts_both_ways(
    cli_registry: Registry, published: Path, tmp_path: Path
) -> None:
    folder, file = tmp_path / "model", tmp_path / "again.safetensors"
    options = ("--format", FORMAT, "-m", "toy")
    done = invoke("convert", "weights", published, *options, "head.classes=[a,b]", "-o", folder)
    assert done.exit_code == 0, done.output
    line = f"written {folder}, format {FORMAT}, model toy, replayed embedding logits scores, "
    assert done.output.startswith(f"{line}largest deviation ")
    assert wsizoo.load(folder, registry=cli_registry).classes == ["a", "b"]
    back = invoke("convert", "weights", folder, "--format", FORMAT, "-o", file, "--json")
    assert back.exit_code == 0, back.output
    assert json.loads(back.output) == {"written": str(file), "format": FORMAT, "model": "toy"}
    theirs, ours = tensors_of(published), tensors_of(file)
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_the_command_asks_for_the_model_of_a_file(cli_registry: Registry, published: Path) -> None:
    done = invoke("convert", "weights", published, "--format", FORMAT, "-o", "x")
    assert done.exit_code == 2
    assert "which model are these weights of? --model NAME" in done.output


def test_an_error_of_the_command_leaves_no_folder(
    cli_registry: Registry, published: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    for wrong in (("--format", "toy-oficial"), ("--format", FORMAT, "aggregator.dim=5")):
        done = invoke("convert", "weights", published, *wrong, "-m", "toy", "-o", out)
        assert isinstance(done.exception, NotFoundError | StrictnessError)
    assert [path.name for path in tmp_path.iterdir()] == [published.name]


def test_formats_are_listed_with_what_they_are_of(cli_registry: Registry) -> None:
    rows = json.loads(invoke("list", "--parts", "weight-format", "--json").output)
    expected = {"weight-format": FORMAT, "of": "abmil", "from": "toy-plugin", "summary": "a toy's"}
    assert rows == [expected]
    assert FORMAT in invoke("plugins").output


def test_a_folder_of_features_called_weights_is_still_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    bag = wsizoo.Bag(
        torch.randn(3, 4), torch.tensor([[0, 0], [0, 9], [9, 0]]), spacing=9.0, mpp=0.5
    )
    wsizoo.write_bag(bag.replace(encoder="uni", slide_id="s"), tmp_path / "weights" / "s.h5")
    done = invoke("convert", "./weights", "out", "--to", "wsizoo")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "s.h5").is_file()
