"""wsizoo.formats: files as each tool writes them, read into bags, and what is refused.

Fixtures are written from the tools' documented layouts, real files are read where they are there.
"""

import contextlib
import json
import os
import pickle
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import wsizoo
from wsizoo.bag import Bag
from wsizoo.errors import BagError, DataError, FingerprintError, NotFoundError, ScaleError
from wsizoo.fingerprint import Fingerprint
from wsizoo.formats.detect import FORMATS, contents_of, detect
from wsizoo.formats.encoders import TOOLS, fingerprint_of, name_in
from wsizoo.formats.inspection import Inspection, inspect
from wsizoo.formats.lazyslide import corners
from wsizoo.formats.read import ReadAs, read_features, read_with_report
from wsizoo.formats.span import published_cells
from wsizoo.registry import default
from wsizoo.slides.store import write_bag

DATA = Path(os.environ.get("WSIZOO_DATA", Path(__file__).parents[2] / "shared" / "data"))
REAL = DATA / "features"
needs_real = pytest.mark.skipif(
    not (REAL / "stamp_eagle").is_dir(), reason="no real feature files: set WSIZOO_DATA"
)
EAGLE = {"TCGA-DC-5869": 2131, "TCGA-QG-A5YV": 1896}
N, D = 12, 6
CELLS = np.stack([np.arange(N) % 4, np.arange(N) // 4], 1)
FEATURES = np.random.default_rng(0).normal(size=(N, D)).astype(np.float32)


def write_h5(path: Path, attributes: dict[str, Any] | None = None, **datasets: Any) -> Path:
    """Datasets, and attributes by "dataset.name" or, of the root, "name"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            file.create_dataset(name, data=data)
        for name, value in (attributes or {}).items():
            holder, _, attribute = name.rpartition(".")
            (file[holder] if holder else file).attrs[attribute] = value
    return path


TRIDENT = {
    "coords.patch_size": 256,
    "coords.patch_size_level0": 512,
    "coords.level0_magnification": 40,
    "coords.target_magnification": 20,
    "coords.overlap": 0,
    "coords.name": "S1",
    "coords.savetodir": "/out",
    "coords.level0_width": 4000,
    "coords.level0_height": 3000,
    "features.name": "S1",
    "features.savetodir": "/out",
    "features.encoder": "uni_v1",
}


def trident(folder: Path, change: dict[str, Any] | None = None, **datasets: Any) -> Path:
    told = {name: value for name, value in {**TRIDENT, **(change or {})}.items() if value != ""}
    arrays = {"features": FEATURES, "coords": CELLS.astype(np.int64) * 512, **datasets}
    return write_h5(folder / "S1.h5", told, **arrays)


def clam(folder: Path) -> Path:
    """Two contours, the second 100 px off the grid of the first."""
    coords = CELLS * 512 + [1024, 2048]
    coords[8:] += 100
    scale = {"coords.patch_size": 256, "coords.patch_level": 1, "coords.downsample": (2.0, 2.0)}
    write_h5(folder / "patches" / "S1.h5", scale, coords=coords.astype(np.int64))
    (folder / "pt_files").mkdir()
    torch.save(torch.from_numpy(FEATURES), folder / "pt_files" / "S1.pt")
    return write_h5(
        folder / "h5_files" / "S1.h5", features=FEATURES, coords=coords.astype(np.int32)
    )


def span(folder: Path) -> Path:
    ratios = np.linspace(0, 1, N)
    return write_h5(
        folder / "S1.h5", feats=FEATURES, cords=CELLS.astype(np.int64) * 224, ratios=ratios,
        label=np.eye(3, dtype=np.float32)[[1]], caption="a biopsy",
    )  # fmt: skip


def stamp(folder: Path, **change: Any) -> Path:
    told = {
        "stamp_version": "2.2.0",
        "extractor": "mahmood-uni",
        "unit": "um",
        "tile_size_um": 256.0,
        "tile_size_px": 224,
        "code_hash": "ab" * 32,
        "feat_type": "tile",
    }
    told = {name: value for name, value in {**told, **change}.items() if value is not None}
    coords = CELLS.astype(np.float32) * 256
    return write_h5(folder / "S1.h5", told, feats=FEATURES.astype(np.float16), coords=coords)


def slideflow(folder: Path) -> Path:
    config = {
        "extractor": {"class": "slideflow.model.extractors.uni.UNIFeatures", "kwargs": {}},
        "normalizer": None,
        "num_features": D,
        "tile_px": 256,
        "tile_um": 128,
    }
    (folder / "bags_config.json").write_text(json.dumps(config))
    torch.save(torch.from_numpy(FEATURES), folder / "S1.pt")
    np.savez(folder / "S1.index.npz", CELLS * 510 + 255)
    return folder / "S1.pt"


def box(x: float, y: float, edge: float) -> bytes:
    """WKB of a square as shapely.box writes it."""
    ring = [(x + edge, y), (x + edge, y + edge), (x, y + edge), (x, y), (x + edge, y)]
    return struct.pack("<BIII", 1, 3, 1, 5) + b"".join(struct.pack("<dd", *p) for p in ring)


def lazyslide(folder: Path, models: tuple[str, ...] = ("conch",)) -> Path:
    """Tiles of one piece of tissue that begins at (499, 37); rows of the table in another order."""
    zarr = pytest.importorskip("zarr")
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")

    path = folder / "S1.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=3)
    spec = {"width": 224, "height": 224, "stride_width": 224, "stride_height": 224, "mpp": 0.5}
    spec |= {"base_downsample": 2.1957, "tissue_name": "tissues"}
    root.attrs["tile_spec"] = {"tiles": spec}
    root.attrs["slide_properties"] = {"shape": [3000, 4000], "mpp": 0.2277, "n_level": 3}
    shapes = path / "shapes" / "tiles"
    shapes.mkdir(parents=True)
    boxes = [box(499 + 491 * x, 37 + 491 * y, 491) for x, y in CELLS.tolist()]
    rows = {"tile_id": list(range(N)), "tissue_id": [0] * N, "geometry": boxes}
    parquet.write_table(pa.table(rows), shapes / "shapes.parquet")
    order = np.arange(N)[::-1].copy()
    for model in models:
        table = root.create_group(f"tables/{model}_tiles")
        table.create_array("X", data=FEATURES[order])
        table.create_group("obs").create_array("tile_id", data=order)
    return path


def torchmil(folder: Path) -> Path:
    arrays = {"features": FEATURES, "coords": CELLS * 512, "labels": np.array([1])}
    arrays["inst_labels"] = np.arange(N) % 2
    for name, array in arrays.items():
        (folder / name).mkdir()
        np.save(folder / name / "S1.npy", array)
    return folder / "features" / "S1.npy"


def mil_baseline(folder: Path) -> Path:
    torch.save(torch.from_numpy(FEATURES), folder / "S1.pt")
    (folder / "data.csv").write_text("slide_path,label\nS1.pt,2\n")
    return folder / "data.csv"


def atlaspatch(folder: Path) -> Path:
    coords = np.concatenate([CELLS * 512, np.full((N, 2), 512), np.zeros((N, 1), int)], 1)
    told = {"patch_size": 256, "patch_size_level0": 512}
    path = write_h5(folder / "S1.h5", told, coords=coords.astype(np.int32))
    with h5py.File(path, "r+") as file:
        file["features/uni"] = FEATURES
        file["features/plip"] = FEATURES[:, :3]
    return path


Maker = Callable[[Path], Path]
FILES: dict[str, tuple[Maker, dict[str, Any]]] = {
    "trident": (trident, {}),
    "clam": (clam, {"encoder": "resnet50-trunc"}),
    "span": (span, {"encoder": "uni"}),
    "stamp": (stamp, {}),
    "slideflow": (slideflow, {}),
    "lazyslide": (lazyslide, {}),
    "torchmil": (torchmil, {"encoder": "uni"}),
    "mil-baseline": (mil_baseline, {"encoder": "uni"}),
    "atlaspatch": (atlaspatch, {"table": "uni"}),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_is_recognised_by_its_content_and_read(name: str, tmp_path: Path) -> None:
    make, how = FILES[name]
    path = make(tmp_path)
    assert detect(path).name == name
    bag = read_features(path, **how)
    order = slice(None, None, -1) if name == "lazyslide" else slice(None)
    assert np.array_equal(bag.features.float(), FEATURES.astype(bag.features.numpy().dtype)[order])
    if name == "mil-baseline":
        assert bag.coords is None
        return
    cells = bag.require_unique_cells()
    assert np.array_equal(cells - cells.min(0).values, CELLS[order] - CELLS.min(0))


def test_trident(tmp_path: Path) -> None:
    bag = wsizoo.read_bag(trident(tmp_path))
    assert (bag.spacing, bag.footprint, bag.mpp, bag.slide_id) == (512.0, 512.0, None, "S1")
    assert bag.encoder == Fingerprint("uni", mpp=0.5, patch_size=256)
    assert bag.coords is not None
    assert bag.coords.tolist() == (CELLS * 512).tolist()
    facts = read_with_report(tmp_path / "S1.h5").facts
    assert (facts.width, facts.height, facts.overlap) == (4000, 3000, 0)


def test_tridents_overlap_and_float_footprint(tmp_path: Path) -> None:
    change = {"coords.overlap": 64.0, "coords.patch_size_level0": 512.0}
    bag = read_features(trident(tmp_path, change, coords=CELLS * 384))
    assert (bag.spacing, bag.footprint) == (384.0, 512.0)


def test_tridents_bucket_of_magnifications_is_found_out_where_mpp_is_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bag = read_features(trident(tmp_path), slide_mpp=0.25)
    assert bag.encoder == Fingerprint("uni", mpp=0.5, patch_size=256)
    assert bag.mpp == 0.25
    assert caplog.text == ""
    bag = read_features(trident(tmp_path), slide_mpp=0.299)
    assert bag.encoder is not None
    assert bag.encoder.mpp == pytest.approx(0.598)
    assert "asked for at 0.5 um/px and are at 0.598 (+20 %)" in caplog.text


def test_old_and_empty_files_of_trident(tmp_path: Path) -> None:
    old = trident(tmp_path, {"features.encoder": ""}, features=FEATURES[None])
    assert read_features(old, encoder="uni").features.shape == (N, D)
    for empty in (np.zeros(0, np.float32), np.zeros((0, D), np.float32)):
        path = trident(tmp_path, features=empty, coords=np.zeros((0, 2), np.int64))
        with pytest.raises(DataError, match="holds no patches: nothing was found on its slide"):
            read_features(path)


def test_embeddings_of_slides_and_bare_coordinates_are_not_features_of_patches(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataError, match=r"holds the embedding of a slide \(6 numbers\)"):
        read_features(trident(tmp_path, features=FEATURES[0]))
    told = {name: value for name, value in TRIDENT.items() if name.startswith("coords")}
    with pytest.raises(DataError, match="holds TRIDENT's coordinates and no features"):
        read_features(write_h5(tmp_path / "p.h5", told, coords=CELLS))
    with pytest.raises(DataError, match="holds CLAM's coordinates and no features"):
        read_features(write_h5(tmp_path / "q.h5", {"coords.patch_level": 0}, coords=CELLS))
    with pytest.raises(DataError, match="holds the embedding of a slide, expected features"):
        read_features(stamp(tmp_path, feat_type="slide"))


def test_clam(tmp_path: Path) -> None:
    reading = read_with_report(clam(tmp_path), ReadAs("resnet50-trunc"))
    bag, report = reading.bag, reading.regridded
    assert (bag.spacing, bag.footprint) == (512.0, 512.0)
    assert bag.encoder == Fingerprint("resnet50-trunc", declared=True)
    assert (report.moved, report.collisions, round(report.max_px)) == (4, 0, 141)
    assert bag.coords is not None
    assert bag.coords[:8].tolist() == (CELLS * 512 + [1024, 2048])[:8].tolist()


def test_a_tensor_of_clam_takes_its_coordinates_from_the_file_beside_it(tmp_path: Path) -> None:
    clam(tmp_path)
    tensor, whole = tmp_path / "pt_files" / "S1.pt", tmp_path / "h5_files" / "S1.h5"
    assert detect(tensor).name == "clam"
    one, other = (read_features(path, encoder="uni") for path in (tensor, whole))
    assert torch.equal(one.features, other.features)
    assert one.coords is not None and other.coords is not None
    assert torch.equal(one.coords, other.coords)
    whole.unlink()
    assert read_features(tensor, encoder="uni").coords is not None  # of patches/
    (tmp_path / "patches" / "S1.h5").unlink()
    with pytest.raises(DataError, match=r"is a bare tensor.*--format pt, in a run data\.format=pt"):
        read_features(tensor, encoder="uni")
    assert read_features(tensor, encoder="uni", format="clam").coords is None


def test_span_files_have_the_cells_of_spans_loader(tmp_path: Path) -> None:
    bag = read_features(span(tmp_path), encoder="uni")
    assert bag.coords is not None
    cells = bag.grid()
    assert torch.equal(published_cells(bag.coords), cells - cells.amin(0))


def test_spans_loader_puts_patches_off_the_grid_into_one_cell() -> None:
    coords = torch.tensor([[100, 0], [330, 0], [500, 0], [0, 223]])
    assert published_cells(coords).tolist() == [[0, 0], [1, 0], [2, 0], [0, 0]]


def test_span_keeps_ratios_and_label(tmp_path: Path) -> None:
    bag = read_features(span(tmp_path), encoder="uni")
    assert bag.spacing == 224
    assert bag.mpp is None
    assert bag.target is not None
    assert bag.target["label"] == 1
    assert bag.target["instances"].tolist() == np.linspace(0, 1, N).tolist()


def test_stamp_since_version_2_is_in_um_until_mpp_is_known(tmp_path: Path) -> None:
    path = stamp(tmp_path)
    reading = read_with_report(path)
    bag = reading.bag
    assert (bag.spacing, bag.footprint, bag.mpp, reading.frame) == (256.0, 256.0, 1.0, "um")
    assert bag.encoder == Fingerprint("uni", mpp=256 / 224, patch_size=224)
    assert bag.features.dtype == torch.float16
    assert reading.facts.mpp_source == "coordinates are in um"
    reading = read_with_report(path, ReadAs(slide_mpp=0.2277))
    bag = reading.bag
    assert reading.frame == "level-0 px"
    assert bag.spacing == pytest.approx(256 / 0.2277)
    assert bag.coords is not None
    assert np.abs(bag.coords.numpy() - CELLS * 256 / 0.2277).max() <= 0.5
    assert bag.grid().tolist() == CELLS.tolist()
    assert bag.mpp == 0.2277


def test_stamp_2_0_names_its_edge_tile_size(tmp_path: Path) -> None:
    change: dict[str, Any] = {"tile_size_um": None, "tile_size": 256.0, "tile_size_px": None}
    bag = read_features(stamp(tmp_path, **change))
    assert (bag.spacing, bag.mpp) == (256.0, 1.0)
    assert bag.encoder == Fingerprint("uni")


def test_early_stamp_is_in_px_of_its_own_whose_size_is_never_guessed(tmp_path: Path) -> None:
    told = {"extractor": "STAMP-extract-001_01-10-2023_xiyuewang-ctranspath-7c998680"}
    path = write_h5(tmp_path / "S1.h5", told, feats=FEATURES, coords=CELLS * 224)
    reading = read_with_report(path)
    bag = reading.bag
    assert (bag.spacing, bag.mpp, reading.frame) == (224.0, None, "px of the tool's own")
    assert bag.encoder == Fingerprint("ctranspath")
    with pytest.raises(DataError, match=r"px of its tool's own.*--coords-mpp.*1\.142857.*2\.0"):
        read_features(path, slide_mpp=0.25)
    for coords_mpp, spacing in ((256 / 224, 1024.0), (2.0, 1792.0)):
        bag = read_features(path, slide_mpp=0.25, coords_mpp=coords_mpp)
        assert bag.spacing == pytest.approx(spacing)
        assert bag.grid().tolist() == CELLS.tolist()
        assert bag.encoder == Fingerprint("ctranspath", patch_size=224, mpp=coords_mpp)
        found = inspect(path, ReadAs(slide_mpp=0.25, coords_mpp=coords_mpp))
        assert found.fingerprint == bag.encoder.to_json()
        assert found.patch_mpp == pytest.approx(coords_mpp)
    bag = read_features(path, coords_mpp=2.0)
    assert (bag.spacing, bag.mpp) == (224.0, 2.0)


def test_um_per_px_that_contradict_the_file_are_an_error_and_name_both(tmp_path: Path) -> None:
    bag = Bag(torch.from_numpy(FEATURES), torch.from_numpy(CELLS * 512), spacing=512.0, mpp=0.25)
    path = write_bag(bag, tmp_path / "own" / "S1.h5")
    match = (
        r"S1\.h5' \(wsizoo\) states 0\.25 um per level-0 px, you said 0\.5\. Leave out --mpp, or"
    )
    with pytest.raises(DataError, match=match):
        read_features(path, slide_mpp=0.5)
    with pytest.raises(DataError, match=match):
        read_features(path, slide_mpp=0.5, collisions="nearest")
    units = r"states 0\.25 um per unit of its coordinates, you said 2\. Leave out --coords-mpp"
    with pytest.raises(DataError, match=units):
        read_features(path, coords_mpp=2.0)
    assert "you said 0.5" in inspect(path, ReadAs(slide_mpp=0.5)).reason
    assert not inspect(path, ReadAs(slide_mpp=0.5)).complete
    with pytest.raises(DataError, match=r"\(stamp\) states 1 um per unit of its coordinates, you"):
        read_features(stamp(tmp_path), coords_mpp=2.0)
    for same in ({"slide_mpp": 0.25}, {"slide_mpp": 0.2501}, {"coords_mpp": 0.25}):
        back = read_features(path, **same)
        assert (back.mpp, back.spacing) == (0.25, 512.0)
    assert inspect(path, ReadAs(slide_mpp=0.2501)).mpp == 0.25


def test_um_per_px_that_wsizoos_own_file_lacks_are_taken(tmp_path: Path) -> None:
    bag = Bag(torch.from_numpy(FEATURES), torch.from_numpy(CELLS * 512), spacing=512.0)
    path = write_bag(bag, tmp_path / "S1.h5")
    reading = read_with_report(path, ReadAs(slide_mpp=0.5))
    assert (reading.bag.mpp, reading.facts.mpp_source) == (0.5, "user")
    assert inspect(path, ReadAs(slide_mpp=0.5)).mpp == 0.5
    moved = read_features(path, slide_mpp=0.5, coords_mpp=1.0)
    assert (moved.spacing, moved.mpp) == (1024.0, 0.5)


def test_pixels_have_no_mean(tmp_path: Path) -> None:
    places = torch.tensor([[0, 0], [0, 0], [64, 0]])
    pixels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    path = write_bag(Bag(pixels, places, spacing=64.0), tmp_path / "p.h5")
    with pytest.raises(DataError, match=r"pixels have no mean\. Choose --collisions nearest or"):
        read_features(path, collisions="mean")
    assert read_features(path, collisions="first").features.shape == (2, 3, 8, 8)


def test_a_newer_stamp_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"written by STAMP 3\.0\.0; its layouts up to 2\.x"):
        read_features(stamp(tmp_path, stamp_version="3.0.0"))


@needs_real
@pytest.mark.parametrize("patient", EAGLE)
def test_real_stamp_files(patient: str) -> None:
    (path,) = (REAL / "stamp_eagle").glob(f"{patient}*.h5")
    reading = read_with_report(path)
    bag = reading.bag
    assert len(bag.require_unique_cells()) == EAGLE[patient]
    assert bag.encoder == Fingerprint("ctranspath")
    assert reading.regridded.on_grid
    with h5py.File(path, "r") as file:
        assert np.array_equal(bag.features, file["feats"][()])
        assert bag.coords is not None
        assert np.array_equal(bag.coords, file["coords"][()])
    placed = read_features(path, slide_mpp=0.252, coords_mpp=2.0)
    assert placed.footprint is not None
    assert placed.footprint * 0.252 == pytest.approx(448)
    assert torch.equal(placed.grid(), bag.grid())


@needs_real
def test_a_real_file_without_an_encoder_needs_its_name() -> None:
    (path,) = (REAL / "stamp_mopadi").glob("*.h5")
    with pytest.raises(DataError, match=r"\(stamp\) does not say which encoder.*--encoder NAME"):
        read_features(path)
    bag = read_features(path, encoder="mopadi-encoder")
    assert (len(bag), bag.dim, bag.spacing) == (777, 512, 512.0)
    assert bag.encoder == Fingerprint("mopadi-encoder", declared=True)


def test_slideflow_gives_centres(tmp_path: Path) -> None:
    bag = read_features(slideflow(tmp_path))
    assert bag.coords is not None
    assert bag.coords.tolist() == (CELLS * 510).tolist()
    assert (bag.spacing, bag.footprint) == (510.0, 510.0)
    assert bag.encoder == Fingerprint("uni", mpp=0.5, patch_size=256)


def test_lazyslide_has_an_origin_of_its_own_and_whole_px(tmp_path: Path) -> None:
    bag = read_features(lazyslide(tmp_path))
    assert bag.coords is not None
    assert bag.coords.flip(0).tolist() == (CELLS * 491 + [499, 37]).tolist()
    assert (bag.spacing, bag.footprint, bag.mpp) == (491.0, 491.0, 0.2277)
    assert bag.encoder is not None
    assert (bag.encoder.encoder, bag.encoder.pooling) == ("conch", "contrastive projection")
    assert (bag.encoder.mpp, bag.encoder.patch_size) == (0.5, 224)


def test_one_of_several_sets_of_features_is_named(tmp_path: Path) -> None:
    path = lazyslide(tmp_path, ("uni", "plip"))
    with pytest.raises(
        DataError, match=r"holds 2 sets of features \(plip_tiles, uni_tiles\); name"
    ):
        read_features(path)
    bag = read_features(path, table="uni_tiles")
    assert bag.encoder is not None
    assert bag.encoder.encoder == "uni"
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match=r"2 sets of features \(plip, uni\); 'phikon' is none"):
        read_features(atlaspatch(tmp_path / "a"), table="phikon")


def test_boxes_of_any_byte_order_and_number_of_corners() -> None:
    triangle = [(3.0, 4.0), (9.0, 4.0), (3.0, 8.0), (3.0, 4.0)]
    big = struct.pack(">BIII", 0, 3, 1, 4) + b"".join(struct.pack(">dd", *p) for p in triangle)
    assert corners([box(1, 2, 10), big]).tolist() == [[1, 2, 11, 12], [3, 4, 9, 8]]
    assert corners([box(1, 2, 10)]).tolist() == [[1, 2, 11, 12]]
    with pytest.raises(ValueError, match="geometries of kind 1, expected polygons"):
        corners([struct.pack("<BIdd", 1, 1, 2.0, 3.0)])
    with pytest.raises(ValueError, match="a geometry of 2 bytes is no polygon"):
        corners([b"\x01\x03"])


def test_a_damaged_store_of_lazyslide_is_one_error(tmp_path: Path) -> None:
    path = lazyslide(tmp_path)
    (path / "shapes" / "tiles" / "shapes.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"S1\.zarr' cannot be read.*truncated or damaged"):
        read_features(path)


def test_tiles_that_a_store_lacks_are_named(tmp_path: Path) -> None:
    path = lazyslide(tmp_path)
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = pa.table({"tile_id": [0], "geometry": [box(0, 0, 491)]})
    parquet.write_table(table, path / "shapes" / "tiles" / "shapes.parquet")
    with pytest.raises(DataError, match="lacks tiles that features are given of: 1 tiles"):
        read_features(path)


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = lazyslide(tmp_path)
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(DataError, match=r"needs zarr and pyarrow: pip install wsizoo\[lazyslide\]"):
        read_features(path)


def test_torchmil_gives_labels(tmp_path: Path) -> None:
    bag = read_features(torchmil(tmp_path), encoder="uni")
    assert bag.target is not None
    assert bag.target["label"] == 1
    assert bag.target["instances"].tolist() == [0, 1] * 6


def test_mil_baseline_lists_one_slide_or_is_to_be_converted(tmp_path: Path) -> None:
    path = mil_baseline(tmp_path)
    assert read_features(path, encoder="uni").target == {"label": 2}
    path.write_text("train_slide_path,train_label,val_slide_path,val_label\nS1.pt,1,S2.pt,0\n")
    with pytest.raises(DataError, match=r"lists 2 slides, expected one file.*wsizoo convert"):
        read_features(path, encoder="uni")


def test_bare_arrays_are_read_where_their_format_is_named(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", FEATURES)
    torch.save(torch.from_numpy(FEATURES), tmp_path / "a.pt")
    for name in ("npy", "pt"):
        with pytest.raises(DataError, match=rf"is a bare .*--format {name}"):
            read_features(tmp_path / f"a.{name}", encoder="uni")
        bag = read_features(tmp_path / f"a.{name}", encoder="uni", format=name)
        assert np.array_equal(bag.features, FEATURES)
        assert (bag.coords, bag.spacing) == (None, None)
    with pytest.raises(NotFoundError, match=r"No format 'nmpy'\. There are: wsizoo, trident"):
        read_features(tmp_path / "a.npy", format="nmpy")


def test_wsizoos_own_files_come_back_as_they_are(tmp_path: Path) -> None:
    off = torch.tensor([[0, 0], [300, 7]])  # off any grid: whoever wrote it knows
    bag = Bag(torch.randn(2, 3), off, spacing=256.0, mpp=0.5, encoder=Fingerprint("uni"))
    path = write_bag(bag, tmp_path / "a.h5")
    back = wsizoo.read_bag(path)
    assert back.coords is not None
    assert torch.equal(back.coords, off)
    assert back.encoder == bag.encoder
    with pytest.raises(FingerprintError, match="says that its features are of uni, you said plip"):
        wsizoo.read_bag(path, encoder="plip")
    bare = write_bag(bag.replace(encoder=None), tmp_path / "b.h5")
    declared = wsizoo.read_bag(bare, encoder="plip").encoder
    assert declared == Fingerprint("plip", declared=True)
    assert wsizoo.read_bag(path, name="B2").slide_id == "B2"


def test_a_rule_brings_wsizoos_own_files_onto_a_grid_too(tmp_path: Path) -> None:
    coords = torch.from_numpy(CELLS * 256)
    coords[11] = coords[10]
    bag = Bag(torch.from_numpy(FEATURES), coords, spacing=256.0, slide_id="A1")
    path = write_bag(bag, tmp_path / "f.h5")
    with pytest.raises(BagError, match="wsizoo convert FILE FOLDER --collisions nearest parts"):
        read_features(path).require_unique_cells()
    back = read_features(path, collisions="nearest")
    assert len(back.require_unique_cells()) == N
    assert (back.slide_id, back.encoder) == ("A1", Fingerprint())


def test_what_the_user_says_of_an_encoder_is_held_against_the_file(tmp_path: Path) -> None:
    path = trident(tmp_path)
    for same in ("uni", "uni_v1"):
        assert read_features(path, encoder=same).encoder == read_features(path).encoder
    with pytest.raises(
        FingerprintError, match=r"\(trident\) says that its features are of uni, you said conch"
    ):
        read_features(path, encoder="conch")
    bare = trident(tmp_path, {"features.encoder": ""})
    made = read_features(bare, encoder="gigapath").encoder
    assert made == Fingerprint("gigapath", mpp=0.5, patch_size=256, declared=True)


@pytest.mark.parametrize(
    ("tool", "theirs", "expected"),
    [
        ("trident", "conch_v15", {"encoder": "conch-v1.5"}),
        ("trident", "ctranspath", {"encoder": "chief-ctranspath"}),
        ("trident", "midnight12k", {"encoder": "midnight-cls"}),
        ("stamp", "virchow2", {"encoder": "virchow2-cls"}),
        ("stamp", "virchow_full", {"encoder": "virchow"}),
        ("stamp", "mahmood-conch1_5", {"encoder": "conch-v1.5"}),
        ("stamp", "xiyuewang-ctranspath-7c998680", {"encoder": "ctranspath"}),
        ("lazyslide", "conch", {"encoder": "conch", "pooling": "contrastive projection"}),
        ("slideflow", "a.b.Virchow2Features", {"encoder": "virchow2"}),
        ("trident", "my-own_Encoder", {"encoder": "my-own_Encoder"}),
    ],
)
def test_names_of_encoders(tool: str, theirs: str, expected: dict[str, str]) -> None:
    assert fingerprint_of(tool, theirs).stated() == expected
    assert fingerprint_of(tool, name_in(tool, Fingerprint(**expected))).stated() == expected


@pytest.mark.parametrize(
    ("tool", "made", "name"),
    [
        ("stamp", Fingerprint("virchow2"), "wsizoo-virchow2"),
        ("trident", Fingerprint("ctranspath"), "wsizoo-ctranspath"),
        ("trident", Fingerprint("h0-mini", pooling="cls+mean"), "wsizoo-h0-mini"),
        ("trident", Fingerprint("h0-mini"), "h0-mini"),
        ("lazyslide", Fingerprint("conch", pooling="attention"), "wsizoo-conch"),
    ],
)
def test_a_tool_is_not_told_a_name_by_which_it_means_another(
    tool: str, made: Fingerprint, name: str
) -> None:
    assert name_in(tool, made) == name
    back = fingerprint_of(tool, name)
    assert back.encoder == made.encoder
    assert not back.differences(made)


def test_a_name_near_one_of_the_zoo_is_an_error_and_one_far_off_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = span(tmp_path)
    with pytest.raises(
        NotFoundError,
        match=r"No encoder named 'gigapth'\. Did you mean 'gigapath'\? If you mean one that the "
        "zoo does not know, give it a name that is not so near",
    ):
        read_features(path, encoder="gigapth")
    assert "Did you mean 'gigapath'" in inspect(path, ReadAs("gigapth")).reason
    assert caplog.text == ""
    assert read_features(path, encoder="nosuch").encoder == Fingerprint("nosuch", declared=True)
    assert "encoder 'nosuch' is unknown to the zoo" in caplog.text
    assert read_features(path, encoder="my-uni").encoder == Fingerprint("my-uni", declared=True)
    bare = trident(tmp_path, {"features.encoder": ""})
    made = read_features(bare, encoder="uni_v1").encoder
    assert made == Fingerprint("uni", mpp=0.5, patch_size=256, declared=True)


def test_one_name_of_two_tools_may_be_two_vectors() -> None:
    one, other = fingerprint_of("trident", "conch_v1"), fingerprint_of("lazyslide", "conch")
    with pytest.raises(FingerprintError, match="conch features with pooling attention; those of"):
        one.check_accepts(other, "'m'", "slide 's'")
    one, other = fingerprint_of("trident", "virchow"), fingerprint_of("stamp", "virchow")
    with pytest.raises(FingerprintError, match="virchow features; slide 's' was encoded with vir"):
        one.check_accepts(other, "'m'", "slide 's'")


def test_two_rows_that_collide_are_averaged_where_that_is_asked_for(tmp_path: Path) -> None:
    coords = CELLS * 512
    coords[11] = coords[10] + 30
    path = trident(tmp_path, coords=coords, features=FEATURES.astype(np.float16))
    with pytest.raises(DataError, match=r"1 of 12 patches share a cell.*--collisions"):
        read_features(path)
    mean = read_features(path, collisions="mean")
    assert mean.features.shape == (11, D)
    assert mean.features.dtype == torch.float16
    assert torch.allclose(
        mean.features[10].float(), torch.from_numpy(FEATURES[10:].mean(0)), atol=2e-3
    )
    assert np.array_equal(mean.features[:10], FEATURES[:10].astype(np.float16))
    assert len(read_features(path, collisions="first")) == 11
    assert len(read_features(path, collisions="nearest")) == 12
    with pytest.raises(DataError, match="collisions is 'sum', expected error, nearest"):
        read_features(path, collisions="sum")  # type: ignore[arg-type]


def test_scales_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ScaleError, match="264 is outside"):
        read_features(stamp(tmp_path), slide_mpp=264)
    with pytest.raises(DataError, match="coords_mpp is -1, expected um per unit"):
        read_features(stamp(tmp_path), coords_mpp=-1)


def bad_files() -> dict[str, tuple[Callable[[Path], Path], str]]:
    holes, negative = CELLS * 512.0, CELLS * 512
    holes[3, 1] = np.nan
    negative = negative - [1, 0]
    words = np.array([b"one", b"two"])
    return {
        "truncated": (lambda p: truncated(trident(p)), "cannot be read.*truncated or damaged"),
        "counts": (
            lambda p: trident(p, coords=CELLS[:7] * 512),
            "12 rows of features and 7 of coordinates",
        ),
        "nan": (
            lambda p: trident(p, coords=holes),
            r"1 of 12 coordinates are negative, NaN or infinite, first row 3: \(1536, nan\)",
        ),
        "negative": (lambda p: trident(p, coords=negative), r"first row 0: \(-1, 0\)"),
        "three columns": (
            lambda p: trident(p, coords=np.zeros((N, 3))),
            r"coordinates are \(12, 3\) float64, expected \(N, 2\)",
        ),
        "strings": (
            lambda p: write_h5(p / "S1.h5", feats=words, coords=CELLS[:2]),
            "'feats' is of type .*, expected numbers",
        ),
        "objects": (lambda p: with_objects(p / "S1.h5"), "'feats' is of type object"),
        "a group": (lambda p: with_group(p / "S1.h5"), "'cords' is a group, expected a dataset"),
        "integers": (
            lambda p: trident(p, features=np.ones((N, D), np.int64)),
            r"features are \(12, 6\) int64, expected \(N, D\) floats",
        ),
        "four axes": (
            lambda p: trident(p, features=np.zeros((2, N, D, 1))),
            r"features are \(2, 12, 6, 1\), expected \(N, D\)",
        ),
        "zero rows": (
            lambda p: write_h5(p / "S1.h5", feats=FEATURES[:0], cords=CELLS[:0]),
            "holds no patches",
        ),
        "empty": (lambda p: write_h5(p / "S1.h5"), "is of no known format: HDF5, but empty"),
        "ratios": (
            lambda p: write_h5(p / "S1.h5", feats=FEATURES, cords=CELLS, ratios=[1.0]),
            "1 ratios for 12 patches",
        ),
        "attribute": (
            lambda p: trident(p, {"coords.patch_size_level0": -5}),
            "patch_size_level0 is -5, expected a positive number",
        ),
        "no magnification": (
            lambda p: trident(p, {"coords.target_magnification": "many"}),
            "target_magnification is 'many', expected a positive number",
        ),
        "two formats": (
            lambda p: write_h5(p / "S1.h5", feats=FEATURES, cords=CELLS, coords=CELLS),
            r"could be of span or stamp \(it holds \['coords', 'cords', 'feats'\]\).*--format",
        ),
        "unknown": (lambda p: text(p / "S1.h5", "no HDF5"), "is of no known format: no HDF5"),
        "absent": (lambda p: p / "none.h5", "No feature file at"),
        "folder": (lambda p: p, "is of no known format: a folder"),
        "slideflow index": (
            lambda p: replaced(slideflow(p), "S1.index.npz", b"PK"),
            "S1.index.npz' cannot be read",
        ),
        "slideflow config": (
            lambda p: replaced(slideflow(p), "bags_config.json", b"{"),
            "bags_config.json' is no JSON",
        ),
        "tensor": (
            lambda p: replaced(slideflow(p), "S1.pt", b"PK\x03\x04 no tensor"),
            "S1.pt'.*(cannot be read|pickle)",
        ),
    }


def truncated(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-500])
    return path


def with_objects(path: Path) -> Path:
    return write_h5(path, feats=["a", "b"], coords=CELLS[:2])


def with_group(path: Path) -> Path:
    with h5py.File(write_h5(path, feats=FEATURES), "r+") as file:
        file.create_group("cords")
    return path


def text(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def replaced(path: Path, name: str, content: bytes) -> Path:
    (path.parent / name).write_bytes(content)
    return path


@pytest.mark.parametrize("case", bad_files())
def test_a_bad_file_is_one_clear_error(case: str, tmp_path: Path) -> None:
    make, match = bad_files()[case]
    path = make(tmp_path)
    with pytest.raises(DataError, match=match):
        read_features(path, encoder="uni")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_mutated_file_is_read_or_one_clear_error(name: str, tmp_path: Path) -> None:
    make, how = FILES[name]
    rng = random.Random(name)
    for i in range(40):
        folder = tmp_path / str(i)
        folder.mkdir()
        path = make(folder)
        victim = rng.choice(sorted(file for file in folder.rglob("*") if file.is_file()))
        victim.write_bytes(mutated(victim.read_bytes(), rng))
        with contextlib.suppress(DataError, FingerprintError):
            read_features(path, **how)
        assert isinstance(inspect(path, verify=True), Inspection)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut short, with flipped bits, or with a stretch of other bytes."""
    data = bytearray(content)
    at = rng.randrange(len(data))
    kind = rng.choice(["cut", "flip", "replace"])
    if kind == "cut":
        return bytes(data[:at])
    if kind == "replace":
        data[at : at + rng.randrange(1, 50)] = rng.randbytes(rng.randrange(1, 50))
        return bytes(data)
    for _ in range(rng.choice([1, 3, 20])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(data)


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return subprocess.call, (["touch", str(self.canary)],)


@pytest.mark.parametrize("kind", ["torch", "pickle", "numpy", "dict"])
def test_a_pickle_is_refused_and_nothing_in_it_runs(kind: str, tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "S1.pt"
    if kind == "torch":
        torch.save({"features": Evil(canary)}, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Evil(canary)))
    elif kind == "numpy":  # as TRIDENT writes .pt
        torch.save(FEATURES, path)
    else:
        torch.save({"features": torch.zeros(2, 3)}, path)
    match = "holds a dict, expected one tensor" if kind == "dict" else "can run code when it is"
    for format in ("pt", "clam", "slideflow"):
        with pytest.raises(DataError, match=match):
            read_features(path, encoder="uni", format=format)
    assert not canary.exists()
    array = tmp_path / "S1.npy"
    np.save(array, np.array([Evil(canary)], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"S1\.npy' cannot be read: Object arrays"):
        read_features(array, encoder="uni", format="npy")
    assert not canary.exists()


def test_features_are_read_only_when_they_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = trident(tmp_path)
    read = []
    own = h5py.Dataset.__getitem__

    def watched(self: Any, *args: Any, **more: Any) -> Any:
        read.append(self.name)
        return own(self, *args, **more)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", watched)
    _, contents = contents_of(path)
    assert contents.shape == (N, D)
    assert read == ["/coords"]


def test_every_format_says_how_it_is_laid_out() -> None:
    assert {*FILES, "slidechat", "wsizoo", "wsizoo-embedding", "pt", "npy"} == set(FORMATS)
    assert all(each.layout for each in FORMATS.values())


def test_every_name_that_other_tools_are_translated_to_is_in_the_catalogue() -> None:
    meant = {m["encoder"] for names in TOOLS.values() for m in names.values()}
    assert meant <= set(default().encoders)


@pytest.mark.parametrize("name", ["a.h5", "a.pt", "a.npy", "a.csv"])
def test_an_empty_file_is_said_to_be_empty(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name}' is empty \(0 bytes\): copy it, or extract its"):
        read_features(tmp_path / name)
