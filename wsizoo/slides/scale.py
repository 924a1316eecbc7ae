"""Microns per pixel of a slide: what states them, in which order it is believed, what is not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isnan, nan
from pathlib import Path

from wsizoo.errors import ScaleError

PLAUSIBLE_MPP = (0.05, 20.0)  # um/px; a resolution tag of 72 or 96 dpi reads as 353 or 265
ANISOTROPY = 0.02  # relative difference of mpp in x and y that is still one number
NOMINAL = 10.0  # um/px times objective power: 40x is 0.25, 20x 0.5, 10x 1.0, by convention only
EXPECTED = "expected microns per px of the scan, such as 0.25 (40x) or 0.5 (20x)"
ADVICE = (
    "If you know the scanner's, state it: --mpp 0.25 (40x) or --mpp 0.5 (20x), or the column mpp "
    "of a manifest"
)

# (property of x, property of y, um of their unit), most trusted first. One value alone is of both.
STATED = (
    ("openslide.mpp-x", "openslide.mpp-y", 1.0),
    ("aperio.MPP", "", 1.0),
    ("ventana.ScanRes", "", 1.0),
    (
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_X",
        "mirax.LAYER_0_LEVEL_0_SECTION.MICROMETER_PER_PIXEL_Y",
        1.0,
    ),
    ("philips.DICOM_PIXEL_SPACING", "", 1e3),  # '"0.00025" "0.00025"'
)
OME_UNITS = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "μm": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
TIFF_UNITS = {"inch": 25_400.0, "centimeter": 10_000.0}
OBJECTIVES = ("openslide.objective-power", "aperio.AppMag")


def check_mpp(mpp: float, whose: str = "--mpp") -> None:
    """Raise ScaleError unless a scanner may have made it."""
    if not is_plausible(mpp):
        low, high = PLAUSIBLE_MPP
        raise ScaleError(f"{whose} {mpp:g} is outside {low:g} to {high:g}; {EXPECTED}")


def resolve_mpp(
    path: Path, properties: Mapping[str, str], given: float | None, listed: float | None
) -> tuple[tuple[float, float], str]:
    """um per level-0 px along x and along y, and what says so.

    Args:
        properties: of the file, named as OpenSlide names them.
        given: by the user, listed: by a manifest; believed before anything that the file states,
            but for the shape of its pixels: what is known of that shows in the certificate.

    Returns:
        "user", "manifest", "objective-power 40" or the property that stated it.

    Raises:
        ScaleError: nothing plausible is stated, or pixels are not square.
    """
    for mpp, source, whose in (
        (given, "user", "--mpp"),
        (listed, "manifest", f"{path}: the manifest's mpp"),
    ):
        if mpp is not None:
            check_mpp(mpp, whose)
            x, y = _shape(properties)
            return (mpp * x, mpp * y), source
    refused = []
    for source, x, y in _stated(properties):
        if is_plausible(x) and is_plausible(y):
            _check_square(path, source, x, y)
            return (x, y), source
        refused.append(_describe(source, x, y))
    found = "no microns per pixel"
    if refused:
        low, high = PLAUSIBLE_MPP
        found = f"{' and '.join(refused)}, outside {low:g} to {high:g}, where scans are"
    raise ScaleError(f"{path} states {found}. {ADVICE}")


def _shape(properties: Mapping[str, str]) -> tuple[float, float]:
    """Width and height of a pixel, over their mean, as the file states them; else 1, 1."""
    for _, x, y in _stated(properties):
        if is_plausible(x) and is_plausible(y):
            return 2 * x / (x + y), 2 * y / (x + y)
    return 1.0, 1.0


def is_plausible(mpp: float) -> bool:
    """Whether a scanner may have made it."""
    low, high = PLAUSIBLE_MPP
    return low <= mpp <= high


def _check_square(path: Path, source: str, x: float, y: float) -> None:
    if abs(x - y) > ANISOTROPY * min(x, y):
        raise ScaleError(
            f"{path} states {x:.4g} um/px in x and {y:.4g} in y ({source}), expected square "
            f"pixels. {ADVICE}"
        )


def _describe(source: str, x: float, y: float) -> str:
    if isnan(x) or isnan(y):
        return f"no number ({source})"
    dpi = TIFF_UNITS["inch"] / x if source == "tiff.XResolution" and x else 0
    screen = f", {dpi:.0f} dpi: of a screen or a printer" if 1 <= dpi <= 1200 else ""
    return f"{x:.4g} x {y:.4g} microns per pixel ({source}{screen})"


def _stated(properties: Mapping[str, str]) -> Iterator[tuple[str, float, float]]:
    """(source, um/px in x, in y) of everything that states a scale; nan is what is no number."""
    resolution_tags_only = properties.get("openslide.vendor") == "generic-tiff"
    for source, other, unit in STATED:
        if source in properties and not (resolution_tags_only and source == "openslide.mpp-x"):
            both = f"{properties[source]} {properties.get(other, '')}".replace('"', " ").split()
            x, y = (_number(text) for text in (both[0], both[-1])) if both else (nan, nan)
            yield source, x * unit, y * unit
    yield from _stated_by_ome(properties)
    yield from _stated_by_resolution_tags(properties)
    for name in OBJECTIVES:
        power = _number(properties.get(name, ""))
        if power > 0:
            yield f"objective-power {power:g}", NOMINAL / power, NOMINAL / power


def _stated_by_ome(properties: Mapping[str, str]) -> Iterator[tuple[str, float, float]]:
    if "ome.PhysicalSizeX" in properties:
        x, y = (
            _number(properties.get(f"ome.PhysicalSize{axis}", properties["ome.PhysicalSizeX"]))
            * OME_UNITS.get(properties.get(f"ome.PhysicalSize{axis}Unit", "µm"), nan)
            for axis in "XY"
        )
        yield "ome.PhysicalSizeX", x, y


def _stated_by_resolution_tags(
    properties: Mapping[str, str],
) -> Iterator[tuple[str, float, float]]:
    unit = TIFF_UNITS.get(properties.get("tiff.ResolutionUnit", "").lower())
    if unit and "tiff.XResolution" in properties:
        x = _number(properties["tiff.XResolution"])
        y = _number(properties.get("tiff.YResolution", properties["tiff.XResolution"]))
        x, y = (unit / dots if dots > 0 else nan for dots in (x, y))
        yield "tiff.XResolution", x, y


def _number(text: str) -> float:
    """Of a property; nan where it is none."""
    try:
        return float(text)
    except ValueError:
        return nan
