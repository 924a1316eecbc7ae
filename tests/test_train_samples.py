"""wsizoo.train.samples: slides or patients as bags, read once where they are small."""

from pathlib import Path

import pytest

from tests.toy_cohort import write_cohort
from wsizoo.errors import WsizooError
from wsizoo.train import samples as module
from wsizoo.train.cohort import Cohort, read_cohort
from wsizoo.train.config import DataConfig
from wsizoo.train.samples import Samples


def cohort(folder: Path, task: str = "classification", patient_slides: str = "each") -> Cohort:
    write_cohort(folder, slides=8, per_patient=2)
    table, features = str(folder / "slides.csv"), str(folder / "features")
    config = DataConfig(table=table, features=features, patient_slides=patient_slides)
    return read_cohort(config, task)


def test_a_slide_is_a_bag_of_its_own_name(tmp_path: Path) -> None:
    samples = Samples(cohort(tmp_path), [3, 1])
    assert samples.names == [bag.slide_id for bag in (samples[0], samples[1])] == ["s03", "s01"]
    assert (len(samples), samples[0].target) == (2, {"label": 1})


def test_slides_of_a_patient_are_joined_on_grids_far_apart(tmp_path: Path) -> None:
    made = cohort(tmp_path, patient_slides="concat")
    samples = Samples(made, [2, 3, 6])
    assert samples.names == ["s02+s03", "s06"]
    bag = samples[0]
    assert bag.parts is not None and bag.parts.tolist() == [0, len(made.bag(2)), len(bag)]
    columns = bag.grid()[:, 0]
    ends = bag.parts.tolist()
    assert int(columns[ends[1] :].min() - columns[: ends[1]].max()) > 1000
    assert bag.target == {"label": 1}


def test_times_become_bins_between_the_edges(tmp_path: Path) -> None:
    made = cohort(tmp_path, task="survival")
    times = [record.target["time"] for record in made.records]
    middle = sorted(times)[len(times) // 2]
    samples = Samples(made, range(8), [middle])
    bins = [(bag.target or {})["time"] for bag in (samples[i] for i in range(8))]
    assert bins == [int(time > middle) for time in times] and set(bins) == {0, 1}
    assert [(Samples(made, [i])[0].target or {})["time"] for i in range(8)] == times


def test_small_features_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = cohort(tmp_path)
    samples = Samples(made, [0, 1])
    first = samples[0]
    (tmp_path / "features" / "s00.h5").unlink()
    assert samples[0] is first
    monkeypatch.setattr(module, "KEPT", first.features.nbytes - 1)
    samples = Samples(made, [1])
    assert samples[0] is not samples[0]
    (tmp_path / "features" / "s01.h5").unlink()
    with pytest.raises((WsizooError, OSError)):
        samples[0]
