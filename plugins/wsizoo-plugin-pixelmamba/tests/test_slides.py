"""From a slide to an answer, without a patch encoder; and slides that give none."""

import csv
import json
import logging
import re

import numpy as np
import pytest
import tifffile
import torch
from click.testing import CliRunner
from PIL import Image

import wsizoo
from wsizoo import Bag
from wsizoo.cli import cli
from wsizoo.errors import BagError, FingerprintError, SlideError
from wsizoo.slides.extract import Request

MODEL = ("pixel-mamba-tiny", "head.classes=[normal,tumour]")
FAST = ("aggregator.layers=[h-cat,v-avg,'']", "encoder.patch_size=8", "aggregator.alpha=0.4")
WHITE, PINK = 243, (205, 120, 170)


@pytest.fixture(scope="module")
def model():
    """A small one, awake: with random weights that tell regions apart."""
    made = wsizoo.build(*MODEL, *FAST)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def slide(folder, width=64, height=48, tissue=(8, 8, 56, 40), name="s.png", mode="RGB"):
    """A white slide with a pink rectangle (left, top, right, bottom), noisy."""
    noise = np.random.default_rng(0).integers(-12, 12, (height, width, 3))
    pixels = np.full((height, width, 3), WHITE)
    left, top, right, bottom = tissue
    pixels[top:bottom, left:right] = PINK
    image = Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(folder / name)
    return folder / name


def predict(path, model, tmp_path, slide_mpp=4.0, **request):
    asked = Request(slide_mpp=slide_mpp, **request)
    (result,) = wsizoo.predict(path, model, tmp_path / "out", request=asked)
    return result


def test_a_slide_is_predicted_with_scores_and_a_heatmap(model, tmp_path):
    result = predict(slide(tmp_path), model, tmp_path, min_tissue=0.5)
    assert result.reason == ""
    assert set(result.row) == {"slide", "prob_normal", "prob_tumour", "predicted"}
    bag = wsizoo.read_bag(result.files["features"])
    assert bag.features.shape == (24, 3, 8, 8)  # 6 x 4 regions of tissue, none of glass
    assert bag.features.dtype == torch.uint8
    output = model(bag)
    with open(result.files["scores"], newline="") as file:
        told = [float(row["score"]) for row in csv.DictReader(file)]
    torch.testing.assert_close(torch.tensor(told), output.scores, rtol=1e-4, atol=1e-5)
    assert result.files["heatmap"].is_file() and result.files["geojson"].is_file()


def test_regions_that_were_fused_have_one_score_what_the_slide_loses_without_them(model, tmp_path):
    predict(slide(tmp_path), model, tmp_path)
    bag = wsizoo.read_bag(tmp_path / "out/features/s.h5")
    found = model.aggregator.look(bag)
    scores, region_of = model(bag).scores, found.region_of[0]
    finals = torch.stack([scores[region_of == i][0] for i in range(found.regions.shape[1])])
    assert 1 < len(finals) < len(bag)
    torch.testing.assert_close(finals[region_of], scores)
    vector = found.slide[0]
    for i, score in enumerate(finals):
        without = torch.cat([found.regions[0, :i], found.regions[0, i + 1 :]]).mean(0)
        torch.testing.assert_close(score, (vector - without).norm() / vector.norm())
    order = torch.randperm(len(bag), generator=torch.Generator().manual_seed(1))
    again = model.aggregator.look(bag.subset(order)).region_of[0]
    assert torch.equal(again, region_of[order])


def test_users_see_which_regions_were_fused(model, tmp_path):
    result = predict(slide(tmp_path), model, tmp_path)
    region_of = model.aggregator.look(wsizoo.read_bag(result.files["features"])).region_of[0]
    with open(result.files["scores"], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["group"]) for row in rows] == region_of.tolist()
    assert len({row["group"] for row in rows}) < len(rows)
    tiles = json.loads(result.files["geojson"].read_text())["features"]
    told = [tile["properties"]["measurements"]["group"] for tile in tiles]
    assert told == region_of.tolist()


def test_the_logits_of_the_final_regions_average_to_those_of_the_slide(model, tmp_path):
    predict(slide(tmp_path), model, tmp_path)
    bag = wsizoo.read_bag(tmp_path / "out/features/s.h5")
    found = model.aggregator.look(bag)
    each = model.head.linear(found.regions[0])
    torch.testing.assert_close(each.mean(0), model(bag).logits)


def test_a_slide_that_ends_as_one_region_is_told(model, tmp_path, caplog):
    predict(slide(tmp_path), model, tmp_path)
    bag = wsizoo.read_bag(tmp_path / "out/features/s.h5").subset(torch.arange(4))
    one = wsizoo.build(*MODEL, *FAST[:2], "aggregator.alpha=1.0")
    caplog.set_level(logging.DEBUG)
    scores = one(bag).scores
    assert "its 4 regions were all fused into one, so their scores are equal" in caplog.text
    assert torch.equal(scores, torch.ones(4))


def test_background_is_kept_on_request(model, tmp_path):
    path = slide(tmp_path)
    kept = predict(path, model, tmp_path, min_tissue=0.0)
    assert len(wsizoo.read_bag(kept.files["features"])) == 8 * 6


def test_a_slide_is_predicted_on_the_regions_that_extract_takes(model, tmp_path):
    path = slide(tmp_path, tissue=(5, 3, 59, 45))  # the outer regions hold two eighths or less
    wsizoo.extract(path, "pixels", tmp_path / "regions", request=Request(4.0, 8, slide_mpp=4.0))
    predict(path, model, tmp_path)
    trained_on, seen = (
        wsizoo.read_bag(tmp_path / folder / "s.h5") for folder in ("regions", "out/features")
    )
    assert len(trained_on) == 8 * 6
    assert torch.equal(trained_on.features, seen.features)
    by_half = predict(path, model, tmp_path / "half", min_tissue=0.5)
    assert len(wsizoo.read_bag(by_half.files["features"])) < 8 * 6


@pytest.mark.parametrize(("size", "n"), [((8, 8), 1), ((29, 15), 3)])
def test_one_region_and_an_odd_number_of_regions_are_slides_too(model, tmp_path, size, n):
    path = slide(tmp_path, *size, tissue=(0, 0, *size))
    result = predict(path, model, tmp_path, min_tissue=0.0)
    assert result.reason == ""
    assert len(wsizoo.read_bag(result.files["features"])) == n


def test_regions_beyond_the_edge_are_taken_on_request(model, tmp_path):
    path = slide(tmp_path, 29, 15, tissue=(0, 0, 29, 15))
    result = predict(path, model, tmp_path, min_tissue=0.0, pad=True)
    bag = wsizoo.read_bag(result.files["features"])
    assert bag.grid().tolist() == [[x, y] for y in (0, 1) for x in range(4)]
    last = bag.features[-1]
    assert (last[:, :7, :5] < 250).all()  # the slide's
    assert (last[:, 7:] == 255).all() and (last[:, :, 5:] == 255).all()
    assert result.files["heatmap"].is_file() and result.files["geojson"].is_file()
    tiny = slide(tmp_path, 5, 7, tissue=(0, 0, 5, 7), name="tiny.png")
    small = predict(tiny, model, tmp_path, min_tissue=0.0, pad=True)
    assert len(wsizoo.read_bag(small.files["features"])) == 1


@pytest.mark.parametrize(
    ("given", "mpp", "message"),
    [
        ({"width": 7}, 4.0, r"28 x 192 um, smaller than one patch of 32 um. .*: --pad"),
        ({"tissue": (0, 0, 0, 0)}, 4.0, "no patch holds .* tissue"),
        ({"mode": "L"}, 4.0, "none was found at all .a grey image: tissue is found by colour"),
        ({}, 9.0, "scanned at 9 um/px, too coarse for patches at 4 um/px"),
    ],
)
def test_a_slide_that_holds_no_regions_is_refused(model, tmp_path, given, mpp, message):
    result = predict(slide(tmp_path, **given), model, tmp_path, mpp)
    assert not result.row
    with pytest.raises(SlideError, match=message):
        raise SlideError(result.reason)


def tiff(folder, name, pixels, photometric="rgb", mpp=4.0):
    """A tiled TIFF that states its um/px."""
    per_cm = (1e4 / mpp, 1e4 / mpp)
    how = {"photometric": photometric, "resolution": per_cm, "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(folder / f"{name}.tif", pixels, tile=(64, 64), **how)


def test_the_command_says_of_each_bad_slide_what_is_wrong_and_goes_on(model, tmp_path):
    wsizoo.save(model, tmp_path / "model")
    slides = tmp_path / "slides"
    slides.mkdir()
    good = np.asarray(Image.open(slide(tmp_path)))
    blank = np.full_like(good, WHITE)
    missing = np.where(np.arange(good.shape[1])[:, None] == 9, np.nan, good / 255)
    expected = {
        "good": ((good,), "predicted"),
        "odd": ((good[8:32, 8:32],), "predicted"),
        "rgba": ((np.dstack([good, blank[..., :1]]),), "predicted"),
        "small": ((good[:5],), "256 x 20 um, smaller than one patch of 32 um. .*: --pad"),
        "blank": ((blank,), "no patch holds 10 % tissue"),
        "dark": ((blank * 0,), "is dark, so no brightfield slide"),
        "coarse": ((good, "rgb", 16.0), "scanned at 16 um/px, too coarse for patches at 4 um/px"),
        "grey": ((good[..., 0], "minisblack"), "a grey image: tissue is found by colour"),
        "deep": ((good.astype(np.uint16) * 257,), "3 x 16-bit integer RGB, expected 8-bit RGB"),
        "nan": ((missing.astype(np.float32),), "3 x 32-bit float RGB, expected 8-bit RGB"),
        "inks": ((np.dstack([good, blank[..., :1]]), "separated"), "SEPARATED, expected 8-bit"),
    }
    for name, (given, _) in expected.items():
        tiff(slides, name, *given)
    Image.fromarray(good).save(slides / "unscaled.png")
    expected["unscaled"] = ((), "states no microns per pixel. .* --mpp")
    files = [str(file) for file in slides.iterdir()]
    asked = ["-m", str(tmp_path / "model"), "-o", str(tmp_path / "out"), "--no-pictures"]
    told = CliRunner().invoke(cli, ["predict", *files, *asked])
    assert told.exit_code == 1 and "3 of 12 slides done" in told.output, told.output
    for name, (_, message) in expected.items():
        state = "done" if message == "predicted" else "FAILED"
        assert re.search(rf"^{state} +{name}\b.*{message}", told.output, re.M), name


def test_a_grey_slide_is_read_as_rgb(model, tmp_path):
    grey = predict(slide(tmp_path, mode="L"), model, tmp_path, min_tissue=0.0)
    assert wsizoo.read_bag(grey.files["features"]).features.shape == (48, 3, 8, 8)


def test_another_magnification_is_another_model(model, tmp_path):
    with pytest.raises(FingerprintError, match=r"mpp 4\.0.*mpp 8\.0|4\.0.*8\.0"):
        predict(slide(tmp_path), model, tmp_path, mpp=8.0)
    coarse = wsizoo.build(*MODEL, *FAST, "encoder.mpp=8.0")
    result = predict(slide(tmp_path), coarse, tmp_path, min_tissue=0.0)
    assert len(wsizoo.read_bag(result.files["features"])) == 4 * 3


def bag_of(pixels, **changes):
    n = len(pixels)
    place = torch.stack([torch.arange(n) * 32, torch.zeros(n, dtype=torch.int64)], 1)
    return Bag(pixels, **{"coords": place, "spacing": 32.0, "slide_id": "S1", **changes})


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (
            torch.full((2, 3, 8, 8), torch.nan),
            r"features are \(2, 3, 8, 8\) torch.float32, expected",
        ),
        (torch.zeros(2, 3, 8, 8, dtype=torch.int16), r"torch.int16, expected .* uint8"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), r"\(2, 1, 8, 8\) torch.uint8, expected"),
        (torch.zeros(2, 4, 8, 8, dtype=torch.uint8), r"\(2, 4, 8, 8\) torch.uint8, expected"),
    ],
    ids=["NaN", "16 bit", "grey", "with alpha"],
)
def test_what_is_no_rgb_of_8_bits_makes_no_bag(pixels, message):
    with pytest.raises(BagError, match=message):
        bag_of(pixels)


@pytest.mark.parametrize(
    ("bag", "message"),
    [
        (bag_of(torch.randn(2, 24)), r"reads pixels, slide 'S1' holds features \(N, D\)"),
        (bag_of(torch.zeros(0, 3, 8, 8).byte()), "slide 'S1' has no patches"),
        (bag_of(torch.zeros(2, 3, 8, 9).byte()), "slide 'S1': regions are 8 x 9 px .* 2 x 2"),
        (bag_of(torch.zeros(2, 3, 8, 8).byte(), coords=None), "slide 'S1' has no coords"),
        (bag_of(torch.zeros(2, 3, 8, 8).byte(), spacing=None), "slide 'S1' has no spacing"),
        (bag_of(torch.zeros(2, 3, 8, 8).byte(), encoder="uni"), "encoded with uni"),
        (
            bag_of(torch.zeros(2, 3, 8, 8).byte(), coords=torch.zeros(2, 2).long()),
            "patches share a grid cell",
        ),
    ],
    ids=["vectors", "empty", "odd", "no coords", "no spacing", "encoder", "one cell"],
)
def test_a_bag_that_it_cannot_read_is_refused(model, bag, message):
    with pytest.raises(BagError, match=message):
        model(bag)
