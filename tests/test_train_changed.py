"""What of a run may change and what may not: settings, labels, parts, features."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import wsizoo
from tests.toy_cohort import read_table, write_cohort, write_config, write_table
from wsizoo.benchmark.keys import content_key
from wsizoo.errors import DataError
from wsizoo.registry import default
from wsizoo.train.config import load_config
from wsizoo.train.digests import file_digest
from wsizoo.train.run import run_training
from wsizoo.train.run_folder import differences
from wsizoo.train.settings import CHANGE_NO_NUMBER


def train(folder: Path, out: Path, *overrides: str, task: str = "classification") -> Path:
    return run_training(load_config(write_config(folder, task), overrides), out)


def read(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize(
    "change", ["workers=1", "device=auto", "checkpoint_steps=1", "loggers=[tensorboard]"]
)
def test_what_changes_no_number_makes_no_other_run(change: str, tmp_path: Path) -> None:
    """Neither in the folder of a run, nor in its checkpoint, nor as a cell of a benchmark."""
    file, registry = write_config(tmp_path), default()
    old, new = load_config(file), load_config(file, [f"train.{change}"])
    assert old != new and differences(old, new) == {}
    assert content_key(old, "d", "s", registry) == content_key(new, "d", "s", registry)
    assert change.partition("=")[0] in CHANGE_NO_NUMBER
    other = load_config(file, ["train.epochs=3"])
    assert content_key(old, "d", "s", registry) != content_key(other, "d", "s", registry)


def test_other_labels_under_the_same_name_are_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    run = train(tmp_path, tmp_path / "run")
    table = tmp_path / "slides.csv"
    text = table.read_text()
    table.write_text(text.replace("P00,A,benign", "P00,A,malign"))
    with pytest.raises(
        DataError,
        match=r"with other data: slides, patients or labels of the table changed",
    ):
        train(tmp_path, run)
    table.write_text(text)
    train(tmp_path, run)


def test_another_split_of_the_same_slides_is_refused(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    run = train(tmp_path, tmp_path / "run")
    table = tmp_path / "slides.csv"
    rows = read_table(table)
    swap = {"test": "val", "val": "test", "train": "train"}
    write_table(table, [{**row, "part": swap[row["part"]]} for row in rows])
    with pytest.raises(DataError, match=r"begun with other data: the parts of the split changed"):
        train(tmp_path, run)


@pytest.mark.parametrize("state", ["finished", "running"])
@pytest.mark.parametrize("suffix", [".h5", ".pt"])
def test_other_features_under_the_same_names_are_refused(
    suffix: str, state: str, tmp_path: Path
) -> None:
    """Whether a run is finished or to go on; in files of wsizoo, and in those of other tools."""
    write_cohort(tmp_path)
    folder = tmp_path / "features"
    for file in folder.iterdir() if suffix == ".pt" else []:
        torch.save(wsizoo.read_bag(file).features, file.with_suffix(".pt"))
        file.unlink()
    said = ["data.encoder=made-up", "data.format=pt"] if suffix == ".pt" else []
    run = train(tmp_path, tmp_path / "run", *said)
    record = read(run / "run.json")
    (run / "run.json").write_text(json.dumps({**record, "state": state}))
    first, second = (folder / f"{name}{suffix}" for name in ("s00", "s04"))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(
        DataError, match=r"begun with other data: the features changed since \(features_digest \w"
    ):
        train(tmp_path, run, *said)
    first.write_bytes(kept)
    train(tmp_path, run, *said)


def test_other_labels_of_patches_are_refused_and_all_that_changed_is_told(tmp_path: Path) -> None:
    write_cohort(tmp_path)
    run = train(tmp_path, tmp_path / "run", task="segmentation")
    labels = tmp_path / "patches" / "s00.csv"
    labels.write_text(labels.read_text().replace("1", "0"))
    with pytest.raises(DataError, match=r"other data: the labels of patches changed since"):
        train(tmp_path, run, task="segmentation")
    file = tmp_path / "features" / "s01.h5"
    file.write_bytes((tmp_path / "features" / "s05.h5").read_bytes())
    with pytest.raises(DataError, match=r"the features changed .*; the labels of patches changed"):
        train(tmp_path, run, task="segmentation")


def test_features_in_a_folder_have_a_digest_of_their_files(tmp_path: Path) -> None:
    store = tmp_path / "s.zarr"
    store.mkdir()
    (store / "0.0").write_bytes(b"first")
    before = file_digest(store)
    (store / "0.0").write_bytes(b"other")
    assert file_digest(store) != before
