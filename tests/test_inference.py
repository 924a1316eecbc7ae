"""wsizoo.inference: a trained model on slides and feature files, each answer with its origin."""

import csv
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from wsizoo import sources, zoo
from wsizoo.bag import Bag
from wsizoo.encoders.batches import BatchEncoder
from wsizoo.errors import (
    BackendError,
    DataError,
    FingerprintError,
    NotFoundError,
    NotPinnedError,
    SpecError,
)
from wsizoo.fingerprint import Fingerprint
from wsizoo.inference import embed, predict
from wsizoo.interfaces import (
    Aggregated,
    Aggregator,
    Encoder,
    Selected,
    Selector,
    SlideOutput,
    WholeModel,
)
from wsizoo.mil.abmil import ABMIL
from wsizoo.mil.heads import ClassificationHead, SegmentationHead
from wsizoo.model import SlideModel
from wsizoo.publish import save
from wsizoo.slides.extract import Request, SlideEncoder
from wsizoo.slides.manifest import SlideEntry
from wsizoo.slides.store import read_bag, write_bag
from wsizoo.slides.tiff import write_pyramid
from wsizoo.spec import ModelSpec, model_spec
from wsizoo.train.loop import fit
from wsizoo.viz.predicted import PatchAnswers
from wsizoo.viz.table import prediction_row

RECORD: dict[str, Any] = {
    "summary": "toy",
    "licence": "Apache-2.0",
    "source": "tests",
    "encoder": {"name": "mean-colour", "dim": 3, "mpp": 0.5, "patch_size": 64},
    "aggregator": {"name": "abmil", "dim": 4, "attention": 4},
    "head": {"name": "classification", "classes": ["normal", "tumour"]},
}


class MeanColour(Encoder):
    name, dim, mpp, patch_size, preprocessing = "mean-colour", 3, 0.5, 64, "mean"

    def forward(self, patches: Tensor) -> Tensor:
        return patches.float().mean((2, 3))


def toy_spec() -> ModelSpec:
    return model_spec("toy", RECORD)


def toy_model(seed: int = 0, requires: Fingerprint | None = None) -> SlideModel:
    torch.manual_seed(seed)
    aggregator = ABMIL(3, dim=4, attention=4)
    head = ClassificationHead(aggregator.out_dim, classes=["normal", "tumour"])
    made = requires or MeanColour().fingerprint()
    model = SlideModel("toy", toy_spec(), 3, aggregator=aggregator, head=head, requires=made)
    model.trained = True
    return model.eval()


class Brightest(Selector):
    """The first two patches by their first feature."""

    def forward(self, bag: Bag) -> Selected:
        scores = bag.features[:, 0]
        index = scores.topk(2).indices.sort().values
        return Selected(bag.replace(features=bag.features[index], coords=None), index, scores)


class Everything(Selector):
    """All patches, by name."""

    def forward(self, bag: Bag) -> Selected:
        return Selected(bag, torch.arange(len(bag)), bag.features[:, 0])


class Silent(Aggregator):
    """One vector a patch and no scores."""

    gives_instances = True

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0), None, bag.features)


class Whole(WholeModel):
    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, bag: Bag) -> SlideOutput:
        return SlideOutput(logits=bag.features.mean(0)[:2])


def whole_model(classes: tuple[str, ...]) -> SlideModel:
    made = MeanColour().fingerprint()
    return SlideModel("whole", toy_spec(), 3, whole=Whole(classes), requires=made).eval()


def segmentation(selector: Selector | None = None) -> SlideModel:
    torch.manual_seed(0)
    head = SegmentationHead(3, classes=["normal", "tumour"])
    parts: dict[str, Any] = {"aggregator": Silent(), "head": head, "selector": selector}
    return SlideModel("toy", toy_spec(), 3, requires=MeanColour().fingerprint(), **parts).eval()


def four_patches(tmp_path: Path) -> Path:
    """Four patches in a row on a slide without thumbnail; the first and the last are bright."""
    coords = torch.tensor([[0, 0], [100, 0], [200, 0], [300, 0]])
    features = torch.tensor([[9.0, 0, 1], [1, 2, 0], [2, 1, 0], [8, 1, 1]])
    bag = Bag(features, coords, spacing=100.0, encoder=MeanColour().fingerprint())
    return write_bag(bag, tmp_path / "four.h5")


def csv_rows(file: Path) -> list[dict[str, str]]:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


@pytest.fixture(autouse=True)
def _encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """`load_encoder` knows the toy encoder; others as ever."""
    known = sources.load_encoder
    monkeypatch.setattr(
        sources,
        "load_encoder",
        lambda name, weights=None: MeanColour() if name == "mean-colour" else known(name),
    )


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slides")
    for i in range(2):
        rng = np.random.default_rng(i)
        image = np.full((700, 900 + 50 * i, 3), 243, np.uint8)
        image[100:-100, 100:-100] = rng.integers(90, 200, (500, 700 + 50 * i, 1)) // [1, 2, 1]
        write_pyramid(folder / f"S{i}.svs", image, 0.5, (1, 4))
    return folder


@pytest.fixture
def features(slides: Path, tmp_path: Path) -> Path:
    """Two good feature files, one of another encoder, one damaged."""
    folder = tmp_path / "features"
    for i, name in enumerate(("F0", "F1")):
        maker = SlideEncoder(BatchEncoder(MeanColour()), Request())
        maker.extract(SlideEntry(slides / f"S{i}.svs"), folder / f"{name}.h5")
    bag = read_bag(folder / "F0.h5")
    write_bag(bag.replace(encoder=Fingerprint("uni", mpp=0.5)), folder / "foreign.h5")
    (folder / "broken.h5").write_bytes((folder / "F1.h5").read_bytes()[:3000])
    return folder


def table(out: Path) -> dict[str, dict[str, str]]:
    with open(out / "predictions.csv", newline="", encoding="utf-8") as file:
        return {row["slide"]: row for row in csv.DictReader(file)}


def run(out: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((out / "run.json").read_text())
    return told


def size_of(picture: Path) -> tuple[int, int]:
    with Image.open(picture) as image:
        return image.size


def test_a_slide_becomes_a_row_scores_a_heatmap_and_geojson(slides: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    (result,) = predict(
        slides / "S0.svs", toy_model(), tmp_path, progress=lambda *told: seen.append(told)
    )
    bag = read_bag(tmp_path / "features" / "S0.h5")
    with torch.inference_mode():
        output = toy_model()(bag)
    row = table(tmp_path)["S0"]
    assert output.logits is not None
    probability = float(output.logits.softmax(-1)[1])
    assert float(row["prob_tumour"]) == pytest.approx(probability, rel=1e-5)
    assert row["predicted"] == ("tumour" if probability > 0.5 else "normal")
    with open(result.files["scores"], newline="", encoding="utf-8") as file:
        scores = list(csv.DictReader(file))
    assert output.scores is not None
    assert np.allclose([float(s["score"]) for s in scores], output.scores, rtol=1e-4)
    assert bag.coords is not None
    assert [[int(s["x"]), int(s["y"])] for s in scores] == bag.coords.tolist()
    assert size_of(result.files["heatmap"])[0] == 900
    assert len(json.loads(result.files["geojson"].read_text())["features"]) == len(bag)
    assert seen[-1] == ("S0", len(bag), len(bag))


def test_a_feature_file_gives_the_answer_of_its_slide(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    predict(slides / "S0.svs", toy_model(), tmp_path / "a", pictures=False)
    (result,) = predict(features / "F0.h5", toy_model(), tmp_path / "b", pictures=False)
    a, b = table(tmp_path / "a")["S0"], table(tmp_path / "b")["F0"]
    assert a["prob_tumour"] == b["prob_tumour"]
    assert set(result.files) == {"features", "scores"}
    assert not (tmp_path / "b" / "heatmaps").exists()


def test_good_slides_are_predicted_beside_foreign_and_damaged_ones(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    (features / "text.svs").write_text("no slide")
    results = predict([features, slides], toy_model(), tmp_path / "out")
    reasons = {r.slide_id: r.reason for r in results if r.reason}
    assert set(reasons) == {"foreign", "broken", "text"}
    assert "'toy' was made for mean-colour features" in reasons["foreign"]
    assert "slide 'foreign' was encoded with uni" in reasons["foreign"]
    assert "damaged" in reasons["broken"]
    assert "no format OpenSlide reads" in reasons["text"]
    assert sorted(table(tmp_path / "out")) == ["F0", "F1", "S0", "S1"]
    assert run(tmp_path / "out")["slides"]["broken"] == {"failed": reasons["broken"]}


def test_run_json_tells_what_made_the_table(features: Path, tmp_path: Path) -> None:
    model = toy_model()
    bag = read_bag(features / "F0.h5")
    assert bag.encoder is not None
    declared = Fingerprint(encoder="mean-colour", declared=True)
    write_bag(bag.replace(encoder=declared), features / "declared.h5")
    predict([features / "F0.h5", features / "declared.h5"], model, tmp_path / "out")
    told = run(tmp_path / "out")
    assert (told["model"], told["trained"]) == ("toy", True)
    assert told["requires"] == MeanColour().fingerprint().to_json()
    assert len(told["weights"]) == 64
    assert "unverified" not in told["slides"]["F0"]
    assert len(told["slides"]["F0"]["digest"]) == 64
    assert told["slides"]["declared"]["declared"] is True
    assert told["slides"]["declared"]["unverified"] == ["preprocessing", "mpp", "patch_size"]


def test_rows_of_earlier_calls_stay_with_the_same_model_only(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    predict(features / "F0.h5", toy_model(), out)
    predict(features / "F1.h5", toy_model(), out)
    assert sorted(table(out)) == ["F0", "F1"]
    assert sorted(run(out)["slides"]) == ["F0", "F1"]
    with pytest.raises(DataError, match=r"holds predictions of 'toy' with other weights.*--overw"):
        predict(features / "F1.h5", toy_model(seed=1), out)
    assert sorted(table(out)) == ["F0", "F1"]
    predict(features / "F1.h5", toy_model(seed=1), out, overwrite=True)
    assert sorted(table(out)) == ["F1"]
    (out / "run.json").write_text("{")
    predict(features / "F0.h5", toy_model(seed=1), out)
    assert sorted(table(out)) == ["F0"]


def test_a_slide_that_fails_now_keeps_its_earlier_row(features: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    predict([features / "F0.h5", features / "F1.h5"], toy_model(), out)
    (features / "F1.h5").write_bytes(b"")
    predict(features / "F1.h5", toy_model(), out)
    assert sorted(table(out)) == ["F0", "F1"]
    assert "failed" in run(out)["slides"]["F1"] and "failed" not in run(out)["slides"]["F0"]


def test_a_failure_is_forgotten_once_the_slide_is_whole_again(
    features: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", features / "F1.h5"
    predict(file, toy_model(), out)
    whole = file.read_bytes()
    file.write_bytes(b"")
    predict(file, toy_model(), out)
    file.write_bytes(whole)
    assert predict(file, toy_model(), out)[0].present
    assert "failed" not in run(out)["slides"]["F1"]


def test_features_of_an_earlier_call_are_used_again(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(slides, toy_model(), tmp_path)

    def must_not_run(self: object, patches: Tensor) -> Tensor:
        raise AssertionError("encoded again")

    monkeypatch.setattr(MeanColour, "forward", must_not_run)
    assert [r.reason for r in predict(slides, toy_model(), tmp_path)] == ["", ""]


def test_features_of_other_settings_are_named_and_replaced_on_demand(
    slides: Path, tmp_path: Path
) -> None:
    slide, overlap = slides / "S0.svs", Request(overlap=0.5)
    predict(slide, toy_model(), tmp_path)
    (result,) = predict(slide, toy_model(), tmp_path, request=overlap)
    assert "S0.h5' exists and was made with overlap 0.0, now asked for 0.5" in result.reason
    assert "Choose another folder with -o, delete it, or replace it: --overwrite" in result.reason
    assert sorted(table(tmp_path)) == ["S0"]
    (result,) = predict(slide, toy_model(), tmp_path, request=overlap, overwrite=True)
    assert result.reason == ""


def test_a_slide_and_its_own_features_are_not_both_predicted(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    (features / "F0.h5").rename(features / "S0.h5")
    with pytest.raises(DataError, match=r"S0\.h5' have one name \(S0\).*Give only one of them"):
        predict([slides / "S0.svs", features / "S0.h5"], toy_model(), tmp_path / "out")
    with pytest.raises(DataError, match="have one name"):
        predict([slides, features], toy_model(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_would_fail_every_slide_is_said_once_before_any(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(
        FingerprintError, match=r"made for mean-colour features with mpp 0\.5.*1\.0"
    ):
        predict(slides, toy_model(), out, request=Request(mpp=1.0))
    nameless = toy_model(requires=Fingerprint(mpp=0.5))
    with pytest.raises(SpecError, match=r"'toy' names no encoder.*give it feature files"):
        predict(slides, nameless, out)
    absent = toy_model(requires=Fingerprint("conch"))
    with pytest.raises(NotFoundError, match="network of encoder 'conch' does not run here"):
        predict(slides, absent, out)
    with pytest.raises(NotPinnedError, match=r"'uni' is published at .*wsizoo pin uni"):
        predict(slides, toy_model(requires=Fingerprint("uni")), out)
    with pytest.raises(NotFoundError, match="No model named 'nonesuch'"):
        predict(features / "F0.h5", "nonesuch", out)
    with pytest.raises(BackendError, match=r"device 'cuda:77' cannot be used here.*wsizoo doctor"):
        predict(features / "F0.h5", toy_model(), out, device="cuda:77")
    with pytest.raises(BackendError, match="device 'gpu' cannot be used"):
        predict(features / "F0.h5", toy_model(), out, device="gpu")
    assert not list(out.glob("features/*"))


def test_a_model_whose_encoder_is_not_here_reads_feature_files(
    features: Path, tmp_path: Path
) -> None:
    absent = toy_model(requires=Fingerprint("uni"))
    (result,) = predict(features / "foreign.h5", absent, tmp_path)
    assert result.reason == ""


def test_the_models_own_scale_and_size_are_asked_of_the_encoder(
    slides: Path, tmp_path: Path
) -> None:
    coarse = toy_model(requires=MeanColour().fingerprint(1.0, 32))
    (result,) = predict(slides / "S0.svs", coarse, tmp_path, request=Request(patch_size=32))
    assert result.reason == ""
    made = read_bag(result.files["features"]).encoder
    assert made is not None
    assert (made.mpp, made.patch_size) == (1.0, 32)


def test_a_bag_without_coords_gets_scores_and_no_picture(tmp_path: Path) -> None:
    bag = Bag(torch.randn(4, 3), encoder=MeanColour().fingerprint())
    (result,) = predict(write_bag(bag, tmp_path / "b.h5"), toy_model(), tmp_path / "out")
    assert set(result.files) == {"features", "scores"}
    assert result.files["scores"].read_text().splitlines()[1].startswith(",,")


def test_a_bag_without_thumbnail_is_drawn_on_white(tmp_path: Path) -> None:
    coords = torch.tensor([[0, 0], [5000, 3000]])
    bag = Bag(torch.randn(2, 3), coords, spacing=200.0, encoder=MeanColour().fingerprint())
    (result,) = predict(write_bag(bag, tmp_path / "b.h5"), toy_model(), tmp_path / "out")
    picture = np.asarray(Image.open(result.files["heatmap"]).convert("RGB"))
    assert picture.shape[1] == 1024
    assert (picture[300, 500] == 255).all()
    assert (picture[5, 5] != 255).any()


def test_every_task_becomes_a_row() -> None:
    model = toy_model()
    logits = torch.tensor([0.0, 2.0])
    row = prediction_row(model, SlideOutput(logits=logits))
    assert row == {"prob_normal": 0.119203, "prob_tumour": 0.880797, "predicted": "tumour"}
    hazards = SlideOutput(logits=logits, hazards=torch.tensor([0.1, 0.2]), risk=torch.tensor(1.5))
    assert prediction_row(model, hazards) == {"risk": 1.5, "hazard_0": 0.1, "hazard_1": 0.2}
    cox = SlideOutput(logits=logits[:1], risk=torch.tensor(-0.5))
    assert prediction_row(model, cox) == {"risk": -0.5}
    assert prediction_row(model, SlideOutput(value=torch.tensor(3.25))) == {"value": 3.25}
    patches = SlideOutput(instance_logits=torch.tensor([[1.0, 0], [0, 1], [0, 1], [0, 1]]))
    assert prediction_row(model, patches) == {"share_normal": 0.25, "share_tumour": 0.75}
    assert prediction_row(model, SlideOutput(embedding=logits)) == {}


def test_shares_of_classes_are_of_the_patches_that_were_read() -> None:
    logits, kept = torch.tensor([[0.0, 0], [0, 1], [0, 0], [0, 1]]), torch.tensor([1, 3])
    row = prediction_row(toy_model(), SlideOutput(instance_logits=logits, kept=kept))
    assert row == {"share_normal": 0.0, "share_tumour": 1.0}


def test_classes_are_numbered_where_a_model_names_none_and_never_guessed() -> None:
    model = toy_model()
    with pytest.raises(DataError, match=r"'toy' gives 3 logits and names 2 classes .* one name"):
        prediction_row(model, SlideOutput(logits=torch.zeros(3)))
    nameless = whole_model(())
    row = prediction_row(nameless, SlideOutput(logits=torch.zeros(2)))
    assert row == {"prob_0": 0.5, "prob_1": 0.5, "predicted": "0"}


def test_the_built_in_model_predicts_a_slide_by_name(slides: Path, tmp_path: Path) -> None:
    (result,) = predict(slides / "S0.svs", "abmil-demo", tmp_path, request=Request(min_tissue=0.9))
    assert result.reason == ""
    assert set(result.row) == {"slide", "prob_normal", "prob_tumour", "predicted"}


def test_an_embedding_is_written_with_its_origin(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    out, seen = tmp_path / "out", []
    results = embed([slides / "S0.svs", features], toy_model(), out, after_slide=seen.append)
    assert seen == results
    assert {r.slide_id for r in results if r.reason} == {"foreign", "broken"}
    with torch.inference_mode():
        expected = toy_model()(read_bag(features / "F0.h5")).embedding
    with h5py.File(out / "F0.h5", "r") as file:
        assert np.array_equal(file["features"][()], expected)
        assert file.attrs["model"] == "toy"
        assert json.loads(file.attrs["wsizoo_slide"])["slide"] == "F0"
    with pytest.raises(DataError, match="holds the embedding of a slide"):
        read_bag(out / "F0.h5")
    assert all(not r.reason for r in embed(features / "F0.h5", toy_model(), out))


def test_an_embedding_never_replaces_features(slides: Path, features: Path) -> None:
    before = (features / "F0.h5").read_bytes()
    (result,) = embed(features / "F0.h5", toy_model(), features)
    assert "F0.h5' exists and holds no embedding; choose another folder" in result.reason
    assert (features / "F0.h5").read_bytes() == before


def test_what_a_selector_dropped_is_neither_ranked_nor_coloured(tmp_path: Path) -> None:
    model = toy_model()
    model.selector = Brightest(3)
    (result,) = predict(four_patches(tmp_path), model, tmp_path / "out")
    assert result.reason == ""
    rows = csv_rows(result.files["scores"])
    assert [row["kept"] for row in rows] == ["1", "0", "0", "1"]
    assert [row["score"] != "" for row in rows] == [True, False, False, True]
    assert [row["selector_score"] for row in rows] == ["9", "1", "2", "8"]
    picture = np.asarray(Image.open(result.files["heatmap"]).convert("RGB"))
    assert (picture[50, [150, 250]] == 255).all()
    assert (picture[50, [50, 350]] != 255).any(1).all()
    tiles = json.loads(result.files["geojson"].read_text())["features"]
    told = [tile["properties"]["measurements"] for tile in tiles]
    assert ["score" in measured for measured in told] == [True, False, False, True]
    colours = [tuple(tile["properties"]["color"]) for tile in tiles]
    assert len({colours[0], colours[3]}) == 2  # ranks 0 and 1 of the two that were kept
    assert colours[1] == colours[2] == (160, 160, 160) not in (colours[0], colours[3])


def test_kept_patches_are_outlined_and_the_legend_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def legend(image: Any, low: Any, high: Any, label: str) -> Any:
        labels.append(label)
        return image

    monkeypatch.setattr("wsizoo.viz.predicted.with_legend", legend)
    model, file = toy_model(), four_patches(tmp_path)

    def drawn() -> Any:
        (result,) = predict(file, model, tmp_path / str(len(labels)))
        return np.asarray(Image.open(result.files["heatmap"]).convert("RGB"))

    model.selector = Brightest(3)
    picture = drawn()
    assert (picture[50, 0] < 60).all() and (picture[50, 100] == 255).all()
    model.selector = Everything(3)
    assert (drawn()[50, 0] > 60).any(), "no outline where nothing was dropped"
    assert labels[0] == f"{labels[1]}; outlined: the 2 of 4 patches kept"


def test_the_answer_of_a_segmentation_model_is_written_patch_by_patch(tmp_path: Path) -> None:
    model, file = segmentation(), four_patches(tmp_path)
    (result,) = predict(file, model, tmp_path / "out")
    with torch.inference_mode():
        logits = model(read_bag(file)).instance_logits
    assert logits is not None
    expected = logits.softmax(-1)
    rows = csv_rows(result.files["scores"])
    assert list(rows[0]) == ["x", "y", "prob_normal", "prob_tumour", "predicted"]
    found = [[float(row["prob_normal"]), float(row["prob_tumour"])] for row in rows]
    assert np.allclose(found, expected, rtol=1e-5)
    likeliest = [model.classes[i] for i in expected.argmax(1)]
    assert [row["predicted"] for row in rows] == likeliest
    tiles = [
        tile["properties"] for tile in json.loads(result.files["geojson"].read_text())["features"]
    ]
    assert [tile["classification"]["name"] for tile in tiles] == likeliest
    assert tiles[0]["measurements"]["probability tumour"] == pytest.approx(float(expected[0, 1]))
    assert result.files["heatmap"].is_file()


def test_patches_that_a_selector_dropped_have_no_class(tmp_path: Path) -> None:
    (result,) = predict(four_patches(tmp_path), segmentation(Brightest(3)), tmp_path / "out")
    rows = csv_rows(result.files["scores"])
    assert [row["predicted"] != "" for row in rows] == [True, False, False, True]
    assert [row["prob_tumour"] != "" for row in rows] == [True, False, False, True]
    tiles = json.loads(result.files["geojson"].read_text())["features"]
    classified = ["classification" in tile["properties"] for tile in tiles]
    assert classified == [True, False, False, True]


def one_logit_segmentation(threshold: float, selector: Selector | None = None) -> SlideModel:
    """Its logit is the first feature, less five."""
    head = SegmentationHead(3, ["normal", "tumour"], one_logit=True, threshold=threshold)
    assert head.linear is not None
    with torch.no_grad():
        head.linear.weight.copy_(torch.tensor([[1.0, 0, 0]]))
        head.linear.bias.fill_(-5)
    parts: dict[str, Any] = {"aggregator": Scoring(), "head": head, "selector": selector}
    return SlideModel("toy", toy_spec(), 3, requires=MeanColour().fingerprint(), **parts).eval()


class Scoring(Silent):
    """The opposite of the first feature is the score."""

    def forward(self, bag: Bag) -> Aggregated:
        return Aggregated(bag.features.mean(0), -bag.features[:, 0], bag.features)


@pytest.mark.parametrize(("threshold", "positive"), [(0.5, [0, 3]), (0.04, [0, 2, 3])])
def test_one_logit_a_patch_is_shown_as_the_probability_of_the_second_class(
    tmp_path: Path, threshold: float, positive: list[int]
) -> None:
    model = one_logit_segmentation(threshold)
    (result,) = predict(four_patches(tmp_path), model, tmp_path / "out")
    assert result.reason == ""
    assert result.row["share_tumour"] == len(positive) / 4
    probability = torch.sigmoid(torch.tensor([4.0, -4, -3, 3]))
    rows = csv_rows(result.files["scores"])
    assert [float(row["prob_tumour"]) for row in rows] == pytest.approx(probability.tolist())
    called = ["tumour" if i in positive else "normal" for i in range(4)]
    assert [row["predicted"] for row in rows] == called
    assert [float(row["score"]) for row in rows] == [-9, -1, -2, -8]
    tiles = json.loads(result.files["geojson"].read_text())["features"]
    assert [tile["properties"]["classification"]["name"] for tile in tiles] == called
    brightness = [sum(tile["properties"]["color"]) for tile in tiles]
    assert np.argsort(brightness).tolist() == torch.argsort(probability).tolist()
    found = json.loads(result.files["regions"].read_text())["features"]
    assert sum(one["properties"]["measurements"]["patches"] for one in found) == len(positive)
    assert {one["properties"]["classification"]["name"] for one in found} == {"tumour"}
    # the drawing, not its legend: the most probable patch is the brightest, whatever the scores say
    picture = np.asarray(Image.open(result.files["heatmap"]).convert("L"), dtype=float)
    width = picture.shape[1] // 4
    middle = [picture[width // 2, width * i + width // 2] for i in range(4)]
    assert int(np.argmax(middle)) == 0 and int(np.argmin(middle)) == 1


def test_regions_hold_none_of_the_patches_that_a_selector_dropped(tmp_path: Path) -> None:
    model = one_logit_segmentation(0.0, Brightest(3))
    (result,) = predict(four_patches(tmp_path), model, tmp_path / "out")
    found = json.loads(result.files["regions"].read_text())["features"]
    assert [one["geometry"]["coordinates"][0][0] for one in found] == [[0, 0], [300, 0]]
    assert result.row["share_tumour"] == 1.0


def test_regions_are_left_alone_by_the_next_call_and_drawn_again_when_lost(tmp_path: Path) -> None:
    model, file = one_logit_segmentation(0.5), four_patches(tmp_path)
    predict(file, model, tmp_path / "out")
    (again,) = predict(file, model, tmp_path / "out")
    assert again.present and again.files["regions"].is_file()
    again.files["regions"].unlink()
    (drawn,) = predict(file, model, tmp_path / "out")
    assert not drawn.present and drawn.files["regions"].is_file()


def test_a_head_of_one_logit_is_built_trained_saved_and_predicted(tmp_path: Path) -> None:
    bags = []
    for i in range(4):
        generator = torch.Generator().manual_seed(i)
        share = torch.rand(30, generator=generator) * (torch.arange(30) % 3 == 0)
        features = torch.stack([share, 1 - share, torch.rand(30, generator=generator)], 1)
        cells = torch.stack([torch.arange(30) % 6, torch.arange(30) // 6], 1)
        made = Fingerprint("uni", mpp=0.5)
        bag = Bag(features, cells * 100, spacing=100.0, encoder=made, slide_id=f"s{i}")
        bags.append(bag.replace(target={"instances": share}))
    overrides = (
        *("encoder.dim=3", "aggregator={name: mean, dim: 16}", "head={name: segmentation}"),
        *("head.classes=[normal,tumour]", "head.one_logit=true", "head.threshold=0.2"),
        *("head.dice_weight=0.75", "head.pos_weight=2.5"),
    )
    model = zoo.build("abmil-uni", *overrides)
    losses = fit(model, bags, epochs=60, lr=3e-2).losses
    assert losses[-1] < losses[0] / 2
    save(model, tmp_path / "model")
    again = zoo.load(str(tmp_path / "model"))
    file = write_bag(bags[0].replace(target=None), tmp_path / "s0.h5")
    (result,) = predict(file, again, tmp_path / "out")
    assert result.reason == ""
    wanted = ["tumour" if share >= 0.2 else "normal" for share in bags[0].features[:, 0]]
    found = [row["predicted"] for row in csv_rows(result.files["scores"])]
    assert sum(a == b for a, b in zip(wanted, found, strict=True)) >= 28


def test_a_whole_model_is_predicted_by_its_own_classes(tmp_path: Path) -> None:
    (result,) = predict(four_patches(tmp_path), whole_model(("a", "b")), tmp_path / "out")
    assert result.reason == ""
    assert result.row["predicted"] == "a"
    assert set(result.row) == {"slide", "prob_a", "prob_b", "predicted"}
    assert set(result.files) == {"features"}
    assert list(csv_rows(tmp_path / "out" / "predictions.csv")[0])[1:3] == ["prob_a", "prob_b"]


def test_an_interruption_keeps_what_was_predicted_and_the_next_call_goes_on(
    features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, files = tmp_path / "out", [features / "F0.h5", features / "F1.h5"]

    def interrupt(result: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(files, toy_model(), out, after_slide=interrupt)
    assert sorted(table(out)) == sorted(run(out)["slides"]) == ["F0"]
    seen: list[str] = []
    forward = SlideModel.forward

    def watched(self: SlideModel, bag: Bag) -> SlideOutput:
        seen.append(bag.slide_id)
        return forward(self, bag)

    monkeypatch.setattr(SlideModel, "forward", watched)
    first = table(out)["F0"]
    again = predict(files, toy_model(), out)
    assert (seen, [r.present for r in again]) == (["F1"], [True, False])
    assert set(again[0].files) == {"features", "scores", "heatmap", "geojson"}
    assert again[0].row["prob_tumour"] == float(first["prob_tumour"])
    assert table(out)["F0"] == first
    again[0].files["heatmap"].unlink()
    predict(files, toy_model(), out)
    predict(files, toy_model(seed=1), out, overwrite=True)
    assert seen == ["F1", "F0", "F0", "F1"]


def test_changed_features_and_overwrite_are_predicted_again(
    slides: Path, features: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", features / "F0.h5"
    predict(file, toy_model(), out, pictures=False)
    assert predict(file, toy_model(), out, pictures=False)[0].present
    assert not predict(file, toy_model(), out)[0].present  # the pictures were not there
    assert not predict(file, toy_model(), out, overwrite=True)[0].present
    write_bag(read_bag(features / "F1.h5"), file)
    assert not predict(file, toy_model(), out)[0].present
    predict(slides / "S0.svs", toy_model(), out)
    assert predict(slides / "S0.svs", toy_model(), out)[0].present


def test_the_features_of_a_slide_are_digested_once(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from wsizoo.slides import store

    predict(slides / "S0.svs", toy_model(), tmp_path)
    checked: list[Path] = []
    check = store._check_sums

    def watched(path: Path, *rest: Any, **how: Any) -> None:
        checked.append(path)
        check(path, *rest, **how)

    monkeypatch.setattr(store, "_check_sums", watched)
    predict(slides / "S0.svs", toy_model(seed=1), tmp_path, overwrite=True)
    assert checked == [tmp_path / "features" / "S0.h5"]


class RawPixels(Encoder):
    name, dim, mpp, patch_size, preprocessing = "mean-colour", None, 0.5, 64, "mean"

    def forward(self, patches: Tensor) -> Tensor:
        return patches


class PixelMean(Aggregator):
    reads = "pixels"

    def __init__(self) -> None:
        super().__init__(3, 3)

    def forward(self, bag: Bag) -> Aggregated:
        means = bag.features.float().mean((2, 3))  # (N, 3)
        return Aggregated(means.mean(0), means[:, 0])


def test_a_model_of_pixels_predicts_a_slide(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "load_encoder", lambda *_: RawPixels())
    parts: dict[str, Any] = {
        "aggregator": PixelMean(),
        "head": ClassificationHead(3, classes=["normal", "tumour"]),
        "requires": RawPixels().fingerprint(),
    }
    model = SlideModel("pixels", toy_spec(), 3, **parts).eval()
    (result,) = predict(slides / "S0.svs", model, tmp_path)
    assert result.reason == ""
    bag = read_bag(result.files["features"])
    assert (bag.features.dtype, bag.features.shape[1:]) == (torch.uint8, (3, 64, 64))
    assert set(result.files) == {"features", "scores", "heatmap", "geojson"}


def test_the_encoder_runs_on_the_device_that_was_asked_for(
    slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(
        MeanColour, "to", lambda self, device: (asked.append(device), self)[1], raising=False
    )
    predict(slides / "S0.svs", toy_model(), tmp_path, device=torch.device("cpu"))
    assert asked == [torch.device("cpu")]


def test_run_json_states_the_limits_of_the_model(slides: Path, tmp_path: Path) -> None:
    predict(slides / "S0.svs", "abmil-demo", tmp_path, request=Request(min_tissue=0.9))
    assert "A toy trained on synthetic slides" in run(tmp_path)["limits"]
    predict(slides / "S0.svs", toy_model(), tmp_path / "toy")
    assert "limits" not in run(tmp_path / "toy")


def test_limits_are_stamped_for_a_model_object_too(features: Path, tmp_path: Path) -> None:
    model = toy_model()
    model.facts = {"limits": "a toy"}
    predict(features / "F0.h5", model, tmp_path / "out")
    assert run(tmp_path / "out")["limits"] == "a toy"


def forced_file(tmp_path: Path) -> Path:
    """Four patches of features of another encoder, of the model's width."""
    bag = read_bag(four_patches(tmp_path))
    return write_bag(bag.replace(encoder=Fingerprint("uni", mpp=0.5)), tmp_path / "four.h5")


def test_force_goes_on_and_every_output_says_why(tmp_path: Path) -> None:
    file, out = forced_file(tmp_path), tmp_path / "out"
    (result,) = predict(file, toy_model(), out)
    assert "was made for mean-colour features" in result.reason
    assert "every output marked: --force" in result.reason
    (result,) = predict(file, toy_model(), out, force=True)
    why = "encoder uni, not mean-colour"
    assert result.reason == ""
    assert result.row["forced"] == table(out)["four"]["forced"] == why
    assert run(out)["slides"]["four"]["forced"] == why
    assert {row["forced"] for row in csv_rows(result.files["scores"])} == {why}
    assert json.loads(result.files["geojson"].read_text())["properties"] == {"forced": why}
    with Image.open(result.files["heatmap"]) as image:
        assert image.info["forced"] == why
    (result,) = embed(file, toy_model(), tmp_path / "e", force=True)
    with h5py.File(result.files["embedding"], "r") as h5:
        assert h5.attrs["forced"] == why
        assert json.loads(h5.attrs["wsizoo_slide"])["forced"] == why


def test_the_legend_of_a_forced_heatmap_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels: list[str] = []

    def legend(image: Any, low: Any, high: Any, label: str) -> Any:
        labels.append(label)
        return image

    monkeypatch.setattr("wsizoo.viz.predicted.with_legend", legend)
    predict(forced_file(tmp_path), toy_model(), tmp_path / "out", force=True)
    assert labels[0].startswith("FORCED (encoder uni, not mean-colour): importance")


def test_a_forced_row_is_not_taken_for_a_good_one(tmp_path: Path) -> None:
    file, out = forced_file(tmp_path), tmp_path / "out"
    predict(file, toy_model(), out, force=True)
    assert predict(file, toy_model(), out, force=True)[0].present
    (result,) = predict(file, toy_model(), out)
    assert "every output marked: --force" in result.reason
    good = write_bag(read_bag(file).replace(encoder=MeanColour().fingerprint()), file)
    (result,) = predict(good, toy_model(), out)
    assert "forced" not in result.row
    assert "forced" not in run(out)["slides"]["four"]


def test_force_lets_patches_of_another_scale_in(slides: Path, tmp_path: Path) -> None:
    request = Request(mpp=1.0)
    (result,) = predict(slides / "S0.svs", toy_model(), tmp_path, request=request, force=True)
    assert result.row["forced"] == "mpp 1.0, not 0.5"


def stamp_file(folder: Path) -> Path:
    """As STAMP writes them: um, and an encoder of its own."""
    folder.mkdir(exist_ok=True)
    with h5py.File(folder / "slide.h5", "w") as file:
        file["feats"] = np.arange(12, dtype=np.float16).reshape(4, 3)
        file["coords"] = np.array([[0, 0], [32, 0], [0, 32], [32, 32]], np.float32)
        told = {"unit": "um", "tile_size_um": 32.0, "tile_size_px": 64, "extractor": "mean-colour"}
        file.attrs.update(told)
    return folder / "slide.h5"


def test_files_of_other_tools_are_predicted(tmp_path: Path) -> None:
    file, out = stamp_file(tmp_path), tmp_path / "out"
    (result,) = predict(file, toy_model(), out)
    assert set(result.files) == {"features", "scores", "heatmap"}  # um: QuPath would misplace them
    assert run(out)["slides"]["slide"]["frame"] == "um"
    assert run(out)["slides"]["slide"]["unverified"] == ["preprocessing"]
    assert predict(file, toy_model(), out)[0].present
    (result,) = predict(file, toy_model(), out, request=Request(slide_mpp=0.25))
    assert not result.present
    assert "frame" not in run(out)["slides"]["slide"]
    collection = json.loads(result.files["geojson"].read_text())
    assert collection["features"][3]["geometry"]["coordinates"][0][0] == [128, 128]
    with h5py.File(file, "r+") as h5:
        h5["feats"][0, 0] = 7
    assert not predict(file, toy_model(), out, request=Request(slide_mpp=0.25))[0].present


def test_features_that_name_no_encoder_need_it_named(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "s.h5", "w") as file:
        file["features"], file["coords"] = np.ones((2, 3), np.float32), [[0, 0], [64, 0]]
    (result,) = predict(tmp_path / "s.h5", toy_model(), tmp_path / "out")
    assert "does not say which encoder made its features. Name it: --encoder" in result.reason
    (result,) = predict(tmp_path / "s.h5", toy_model(), tmp_path / "out", encoder="mean-colour")
    assert result.reason == ""
    assert run(tmp_path / "out")["slides"]["s"]["declared"] is True
    (result,) = predict(tmp_path / "s.h5", toy_model(), tmp_path / "out", encoder="uni")
    assert "was encoded with uni" in result.reason


def test_a_zarr_store_is_a_feature_file_not_a_folder_of_slides(tmp_path: Path) -> None:
    (tmp_path / "s.zarr").mkdir()
    (tmp_path / "s.zarr" / "zarr.json").write_text("{}")
    assert sources.list_inputs([tmp_path / "s.zarr"]) == [SlideEntry(tmp_path / "s.zarr")]
    (result,) = predict(tmp_path / "s.zarr", toy_model(), tmp_path / "out")
    assert "s.zarr' is of no known format: a zarr" in result.reason


@pytest.mark.parametrize("own", ["config.yaml", "metrics.json", "benchmark.html"])
def test_the_folder_of_a_run_is_never_written_into(
    own: str, features: Path, slides: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / own).write_text("a: 1")
    (out / "predictions.csv").write_text("slide,part\n")
    for given in (features / "F1.h5", slides / "S0.svs"):
        for work in (predict, embed):
            with pytest.raises(DataError, match=rf"holds {own}: it is the folder of .* -o .*-pred"):
                work(given, toy_model(), out, overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == sorted([own, "predictions.csv"])


def test_a_refused_folder_gets_no_features(features: Path, slides: Path, tmp_path: Path) -> None:
    predict(features / "F1.h5", toy_model(), tmp_path / "out")
    with pytest.raises(DataError, match="holds predictions of"):
        predict(slides / "S0.svs", toy_model(seed=1), tmp_path / "out")
    assert not (tmp_path / "out" / "features").exists()


@pytest.mark.parametrize(
    ("scores", "ends", "label"),
    [
        ([0.9987, 1.0, 1.0006], ("least, 0.999", "most, 1"), "(rank)"),
        ([0.99991, 0.99992], ("least, 0.99991", "most, 0.99992"), "(rank)"),
        ([1.0, 2.0, 1.0, 1.0, 2.0], ("least, 1", "most, 2"), "(rank of 2 distinct scores)"),
        ([0.5, 0.5], ("least, 0.5", "most, 0.5"), ": no difference, one score for all"),
    ],
)
def test_a_legend_says_how_far_scores_are_apart(
    scores: list[float], ends: tuple[str, str], label: str
) -> None:
    drawn = PatchAnswers(len(scores), scores=np.array(scores)).drawn()
    assert drawn is not None
    assert drawn[1:] == (ends, "importance to the model" + (" " if label[0] == "(" else "") + label)
