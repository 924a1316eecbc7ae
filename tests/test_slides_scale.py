"""wsizoo.slides.scale: which statement of a scale is believed, and what is said of the others."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from wsizoo.errors import ScaleError
from wsizoo.slides.reader import Pixels, open_slide
from wsizoo.slides.scale import resolve_mpp
from wsizoo.slides.tiff import write_pyramid

SLIDE = Path("a.svs")
OPENSLIDE = {"openslide.mpp-x": "0.2277", "openslide.mpp-y": "0.2277"}
APERIO = {"aperio.MPP": "0.2528", "aperio.AppMag": "40"}
OME = {"ome.PhysicalSizeX": "0.26", "ome.PhysicalSizeY": "0.26"}
TAGS = {
    "tiff.XResolution": "40000",
    "tiff.YResolution": "40000",
    "tiff.ResolutionUnit": "centimeter",
}
SCREEN = {"tiff.XResolution": "72", "tiff.YResolution": "72", "tiff.ResolutionUnit": "inch"}


def resolved(properties: dict[str, str]) -> tuple[float, str]:
    (x, y), source = resolve_mpp(SLIDE, properties, None, None)
    return (x + y) / 2, source


@pytest.fixture(scope="module")
def image() -> Pixels:
    y, x = np.mgrid[:256, :256]
    return np.stack([x, y, 255 - x], axis=-1).astype(np.uint8)


def test_the_user_is_believed_before_the_manifest_and_that_before_the_file() -> None:
    assert resolve_mpp(SLIDE, OPENSLIDE, 0.25, 0.3) == ((0.25, 0.25), "user")
    assert resolve_mpp(SLIDE, OPENSLIDE, None, 0.3) == ((0.3, 0.3), "manifest")
    assert resolve_mpp(SLIDE, OPENSLIDE, None, None) == ((0.2277, 0.2277), "openslide.mpp-x")


def test_what_a_file_states_is_believed_in_one_order() -> None:
    everything = {**TAGS, **OME, **APERIO, **OPENSLIDE, "openslide.objective-power": "20"}
    for names, mpp, source in (
        (OPENSLIDE, 0.2277, "openslide.mpp-x"),
        (["aperio.MPP"], 0.2528, "aperio.MPP"),
        (OME, 0.26, "ome.PhysicalSizeX"),
        (TAGS, 0.25, "tiff.XResolution"),
        (["openslide.objective-power"], 0.5, "objective-power 20"),
        (["aperio.AppMag"], 0.25, "objective-power 40"),
    ):
        assert resolved(everything) == (pytest.approx(mpp), source)
        for name in names:
            del everything[name]
    with pytest.raises(ScaleError, match=r"a.svs states no microns per pixel\. If you know"):
        resolved(everything)


@pytest.mark.parametrize(
    ("properties", "mpp"),
    [
        ({"ventana.ScanRes": "0.232500"}, 0.2325),
        ({"philips.DICOM_PIXEL_SPACING": '"0.000226891" "0.000226907"'}, 0.226899),
        (
            {
                "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X": "0.2325",
                "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y": "0.2327",
            },
            0.2326,
        ),
    ],
)
def test_keys_of_vendors_are_read_in_their_units(properties: dict[str, str], mpp: float) -> None:
    assert resolved(properties) == (pytest.approx(mpp), next(iter(properties)))


@pytest.mark.parametrize(
    ("size", "unit"), [("0.25", None), ("250", "nm"), ("0.25", "µm"), ("0.00025", "mm")]
)
def test_ome_states_its_unit(size: str, unit: str | None) -> None:
    told = {"ome.PhysicalSizeX": size}
    if unit:
        told |= {"ome.PhysicalSizeXUnit": unit, "ome.PhysicalSizeYUnit": unit}
    assert resolved(told) == (pytest.approx(0.25), "ome.PhysicalSizeX")


def test_a_length_of_no_known_unit_is_no_scale() -> None:
    told = {"ome.PhysicalSizeX": "1", "ome.PhysicalSizeXUnit": "pixel", "tiff.XResolution": "1"}
    with pytest.raises(ScaleError, match=r"states no number \(ome.PhysicalSizeX\), outside"):
        resolved(told)


@pytest.mark.parametrize("power", ["40", "20", "10", "5"])
def test_an_objective_means_its_nominal_scale_and_says_so(power: str) -> None:
    told = {"openslide.objective-power": power}
    assert resolved(told) == (10 / float(power), f"objective-power {power}")


def test_what_is_implausible_is_passed_over() -> None:
    assert resolved({"openslide.mpp-x": "0", "openslide.mpp-y": "0", **APERIO})[1] == "aperio.MPP"
    assert resolved({"aperio.MPP": "", **SCREEN, **OME})[1] == "ome.PhysicalSizeX"
    assert resolved({**SCREEN, "aperio.AppMag": "20"}) == (0.5, "objective-power 20")
    assert resolved({"openslide.objective-power": "0", **TAGS})[1] == "tiff.XResolution"


def test_the_error_lists_what_was_found_and_where_and_what_to_type() -> None:
    told = {**SCREEN, "openslide.mpp-x": "nan", "openslide.mpp-y": "1", "aperio.MPP": "0,25"}
    told["openslide.objective-power"] = "1000"
    with pytest.raises(ScaleError) as caught:
        resolved(told)
    for part in (
        "no number (openslide.mpp-x)",
        "no number (aperio.MPP)",
        "352.8 x 352.8 microns per pixel (tiff.XResolution, 72 dpi: of a screen or a printer)",
        "0.01 x 0.01 microns per pixel (objective-power 1000)",
        "outside 0.05 to 20",
        "state it: --mpp 0.25 (40x) or --mpp 0.5 (20x), or the column mpp of a manifest",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("mpp", [264.58, 0.01, 0.0, -1.0, float("nan"), float("inf")])
def test_an_impossible_scale_of_user_or_manifest_is_refused(mpp: float) -> None:
    with pytest.raises(ScaleError, match=r"^--mpp .* is outside 0.05 to 20; expected microns"):
        resolve_mpp(SLIDE, OPENSLIDE, mpp, None)
    with pytest.raises(ScaleError, match=r"^a.svs: the manifest's mpp .* is outside 0.05 to 20"):
        resolve_mpp(SLIDE, OPENSLIDE, None, mpp)


def test_a_slide_without_scale_is_refused_and_can_be_given_one(
    tmp_path: Path, image: Pixels
) -> None:
    path = write_pyramid(tmp_path / "a.tiff", image, 0.5, (1,), description=False, resolution=False)
    with pytest.raises(ScaleError, match=r"states no microns per pixel.*--mpp 0.25"):
        open_slide(path)
    with open_slide(path, mpp=0.5) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.5, "user")
    with open_slide(path, listed_mpp=0.4) as slide:
        assert (slide.mpp, slide.mpp_source) == (0.4, "manifest")


def test_the_resolution_of_a_screen_is_not_believed(tmp_path: Path, image: Pixels) -> None:
    path = write_pyramid(tmp_path / "a.tiff", image, 264.583, (1,), description=False)
    with pytest.raises(ScaleError, match=r"264\.\d x 264\.\d microns per pixel \(.*96 dpi"):
        open_slide(path)


def test_resolution_tags_are_named_as_such_whoever_decodes_them(
    tmp_path: Path, image: Pixels
) -> None:
    per_cm = {"resolution": (20_000, 20_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tif", image, tile=(128, 128), photometric="rgb", **per_cm)
    tifffile.imwrite(tmp_path / "b.tif", image, photometric="rgb", **per_cm)
    for name, reader in (("a.tif", "openslide"), ("b.tif", "tifffile")):
        with open_slide(tmp_path / name) as slide:
            assert (slide.reader, slide.mpp, slide.mpp_source) == (reader, 0.5, "tiff.XResolution")


def anisotropic(path: Path, x: float, y: float) -> Path:
    per_cm = (round(1e4 / x * 100), 100), (round(1e4 / y * 100), 100)
    image = np.zeros((256, 256, 3), np.uint8)
    tifffile.imwrite(
        path, image, tile=(256, 256), photometric="rgb", resolution=per_cm,
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    return path


def test_pixels_that_are_not_square_are_refused_beyond_two_percent(tmp_path: Path) -> None:
    with open_slide(anisotropic(tmp_path / "a.tif", 0.500, 0.504)) as slide:
        assert slide.mpp == pytest.approx(0.502, abs=1e-4)
    with pytest.raises(ScaleError, match=r"0.5 um/px in x and 0.55 in y.*square.*--mpp"):
        open_slide(anisotropic(tmp_path / "b.tif", 0.5, 0.55))


def test_a_scale_that_the_user_states_keeps_the_shape_of_the_pixels() -> None:
    oblong = {"openslide.mpp-x": "0.5", "openslide.mpp-y": "0.526"}
    (x, y), source = resolve_mpp(SLIDE, oblong, 0.5, None)
    assert source == "user"
    assert (x + y) / 2 == pytest.approx(0.5)
    assert y / x == pytest.approx(0.526 / 0.5)
    screen = {"openslide.mpp-x": "264.6", "openslide.mpp-y": "352.8"}
    assert resolve_mpp(SLIDE, screen, 0.5, None)[0] == (0.5, 0.5)
