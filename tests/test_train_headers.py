"""wsizoo.train.headers: what is wrong with feature files is told of all slides, before training."""

from pathlib import Path

import numpy as np
import pytest
import torch

import wsizoo
from wsizoo.bag import Bag
from wsizoo.errors import DataError, FingerprintError
from wsizoo.fingerprint import Fingerprint
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import DataConfig
from wsizoo.train.headers import check_features


def cohort(folder: Path, encoders: dict[str, str | None], **more: str) -> Cohort:
    """Slides by name, with the encoder of their features; None: a bare array."""
    (folder / "t.csv").write_text(
        "slide,label\n" + "".join(f"{name},{i % 2}\n" for i, name in enumerate(encoders))
    )
    (folder / "f").mkdir()
    for name, encoder in encoders.items():
        if encoder is None:
            np.save(folder / "f" / f"{name}.npy", np.zeros((4, 1024), np.float32))
            continue
        made = Fingerprint(encoder=encoder or None)
        bag = Bag(torch.zeros(4, 1024), torch.arange(8).reshape(4, 2) * 256, encoder=made)
        wsizoo.write_bag(bag.replace(slide_id=name, spacing=256.0), folder / "f" / f"{name}.h5")
    config = DataConfig(table=str(folder / "t.csv"), features=str(folder / "f"), **more)
    return read_cohort(config, "classification")


def test_slides_of_other_encoders_are_told_by_encoder(tmp_path: Path) -> None:
    made = cohort(tmp_path, {"a": "uni", "b": "virchow", "c": "uni", "d": "virchow"})
    with pytest.raises(FingerprintError, match=r"slide 'b' was encoded with virchow") as caught:
        check_features(wsizoo.build("abmil-uni", "head.classes=[0,1]"), made)
    assert "Of all slides: 2 state uni (a, c); 2 state virchow (b, d)" in str(caught.value)


def test_arrays_that_say_nothing_of_themselves_are_told_all(tmp_path: Path) -> None:
    made = cohort(tmp_path, {"a": "uni", "b": None, "c": None})
    with pytest.raises(DataError, match=r"2 of 3 feature files cannot be trained on") as caught:
        check_features(wsizoo.build("abmil-uni", "head.classes=[0,1]"), made)
    assert "2 slides, first 'b'" in str(caught.value)
    assert "it is a bare array, if of features (N, D) say so: data.format=npy" in str(caught.value)


def test_a_stated_format_is_taken(tmp_path: Path) -> None:
    made = cohort(tmp_path, {"a": None, "b": None}, format="npy", encoder="uni")
    model = wsizoo.build("mean-uni", "head.classes=[0,1]")
    assert check_features(model, made).encoder == "uni"
