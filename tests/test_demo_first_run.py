"""wsizoo.demo.first_run: the table and the config that the demo leaves are a run as they are."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import wsizoo
from wsizoo.bag import Bag
from wsizoo.demo.cohort import CohortSlide
from wsizoo.demo.first_run import write_first_run
from wsizoo.registry import default
from wsizoo.train.cohort import read_cohort
from wsizoo.train.config import RunConfig, load_config
from wsizoo.train.making import make_model


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Of four slides with features and truth."""
    slides = []
    for i, part in enumerate(["train", "train", "train", "test"]):
        name = f"demo-{i:02}"
        truth = tmp_path / "truth" / f"{name}.npy"
        truth.parent.mkdir(exist_ok=True)
        np.save(truth, np.arange(6, dtype=np.float32).reshape(2, 3) / 8)
        slides.append(CohortSlide(name, tmp_path / f"{name}.svs", truth, i % 2, i // 2, part))
        cells = torch.tensor([[2, 1], [0, 1]])
        bag = Bag(torch.randn(2, 208), cells * 224, spacing=224.0, slide_id=name)
        wsizoo.write_bag(bag, tmp_path / "features" / f"{name}.h5")
    return load_config(write_first_run(tmp_path, slides))


def test_the_cohort_is_read_with_names_of_classes(config: RunConfig) -> None:
    cohort = read_cohort(config.data, "classification")
    assert cohort.labels == ["normal", "tumour", "normal", "tumour"]
    assert [record.row["clustered"] for record in cohort.records][1:3] == ["scattered", "clustered"]
    assert len(set(cohort.patients)) == 4
    assert [record.row[str(config.split.column)] for record in cohort.records][2:] == [
        "train",
        "test",
    ]
    model = wsizoo.build(config.model, *config.overrides)
    assert list(model.classes) == list(cohort.classes)
    assert model(cohort.bag(0)).logits is not None


def test_the_truth_is_labels_of_patches(config: RunConfig, tmp_path: Path) -> None:
    data = dataclasses.replace(config.data, instances=str(tmp_path / "truth"))
    cohort = read_cohort(data, "segmentation")
    target = cohort.bag(0).target or {}
    assert target["instances"].tolist() == [5 / 8, 3 / 8]  # [row 1, column 2], [row 1, column 0]


def test_the_commands_in_the_comment_are_those_of_this_folder(
    config: RunConfig, tmp_path: Path
) -> None:
    text = (tmp_path / "train.yaml").read_text(encoding="utf-8")
    assert f"wsizoo train {tmp_path.as_posix()}/train.yaml -o RUN\n" in text
    other = ["data.label=clustered", "data.classes=[scattered,clustered]"]
    assert f'{other[0]} \\\n#     "{other[1]}"\n' in text
    changed = load_config(tmp_path / "train.yaml", other)
    cohort = read_cohort(changed.data, "classification")
    assert cohort.labels == ["scattered", "scattered", "clustered", "clustered"]
    model = make_model(changed, cohort, range(4), 0, default())
    assert list(model.classes) == list(cohort.classes) == ["scattered", "clustered"]
