"""wsizoo.slides.partial: what was encoded is kept, and only ever for the same question."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.zygote import Zygote
from wsizoo.errors import DataError, SlideError
from wsizoo.slides import partial as module
from wsizoo.slides.partial import Partial, Stretch, partial, tidy

ASKED = {"mpp": 0.5, "cells": [1, 2]}


@pytest.fixture(autouse=True)
def saved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_SECONDS", 0.0)


def stretch(first: int, last: int, without: tuple[int, ...] = ()) -> Stretch:
    index = np.array([i for i in range(first, last) if i not in without], np.int64)
    features = torch.from_numpy(index)[:, None].float().expand(-1, 3).contiguous()
    return Stretch(first, last, index, features if len(index) else torch.empty(0))


def held(parts: Partial) -> list[float]:
    return [value for block in parts.features() for value in block[:, 0].tolist()]


def interrupted(
    out: Path, stretches: list[Stretch], then: type[BaseException] = KeyboardInterrupt
) -> None:
    with partial(out, ASKED) as parts:
        for piece in stretches:
            parts.add(piece)
        raise then("stop")


def begin(out: Path, *ends: int, then: type[BaseException] = KeyboardInterrupt) -> None:
    pieces = [stretch(first, last) for first, last in zip((0, *ends), ends, strict=False)]
    with pytest.raises(then):
        interrupted(out, pieces, then)


def test_an_interruption_keeps_stretches_and_the_next_try_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "S.h5"
    begin(out, 4, 8)
    with partial(out, ASKED) as parts:
        assert parts.done == 8
        parts.add(stretch(8, 10))
        assert parts.index().tolist() == list(range(10))
        assert held(parts) == list(range(10))
    assert list(tmp_path.iterdir()) == []


def test_what_is_only_in_memory_is_saved_by_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART_SECONDS", 1e9)
    begin(tmp_path / "S.h5", 4, 8)
    with partial(tmp_path / "S.h5", ASKED) as parts:
        assert held(parts) == list(range(8))


def test_patches_that_could_not_be_read_are_remembered(tmp_path: Path) -> None:
    out = tmp_path / "S.h5"
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, [stretch(0, 3, without=(1,)), stretch(3, 5, without=(3, 4))])
    with partial(out, ASKED) as parts:
        assert (parts.done, parts.index().tolist()) == (5, [0, 2])
        parts.add(stretch(5, 6))
        assert held(parts) == [0, 2, 5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16, torch.uint8])
def test_any_kind_of_features_comes_back(tmp_path: Path, dtype: torch.dtype) -> None:
    features = torch.arange(24).reshape(2, 3, 2, 2).to(dtype)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path / "S.h5", [Stretch(0, 2, np.arange(2), features)])
    with partial(tmp_path / "S.h5", ASKED) as parts:
        (back,) = parts.features()
        assert torch.equal(back.double(), features.double())


def test_another_question_begins_anew(tmp_path: Path) -> None:
    begin(tmp_path / "S.h5", 4)
    with partial(tmp_path / "S.h5", {**ASKED, "mpp": 1.0}) as parts:
        assert parts.done == 0


def test_a_slide_that_cannot_be_read_leaves_nothing(tmp_path: Path) -> None:
    begin(tmp_path / "S.h5", 4, then=SlideError)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_where_nothing_was_done(tmp_path: Path) -> None:
    begin(tmp_path / "S.h5")
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_stretch_and_those_behind_it_are_made_again(tmp_path: Path) -> None:
    out = tmp_path / "S.h5"
    begin(out, 4, 8, 12)
    parts = sorted((tmp_path / ".S.h5.partial").glob("*.npz"))
    data = bytearray(parts[1].read_bytes())
    data[-150] ^= 1  # in the features
    parts[1].write_bytes(data)
    with partial(out, ASKED) as again:
        assert (again.done, held(again)) == (4, [0, 1, 2, 3])


def test_two_processes_never_make_one_file(tmp_path: Path) -> None:
    with Zygote() as zygote:
        holder = zygote.start("hold", tmp_path / "S.h5", tmp_path / "flag")
        while not (tmp_path / "flag").exists():
            assert zygote.ended(holder) is None
        with (
            pytest.raises(DataError, match=r"is being made by another process now.*--shard"),
            partial(tmp_path / "S.h5", ASKED),
        ):
            pass
        zygote.kill(holder)
    with partial(tmp_path / "S.h5", ASKED) as parts:
        assert parts.done == 0


def test_what_a_finished_file_left_is_tidied_up(tmp_path: Path) -> None:
    out = tmp_path / "S.h5"
    tidy(out)  # nothing there
    with pytest.raises(KeyboardInterrupt):
        interrupted(out, [stretch(0, 2)])
    assert list(tmp_path.iterdir())
    tidy(out)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_works_in_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "S.h5"
    with partial(out, ASKED) as parts:
        parts.add(stretch(0, 2))
        tidy(out)  # another handle of the lock
        assert held(parts) == [0, 1]
        assert list(tmp_path.glob(".S.h5.partial/*.npz"))


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(DataError, match=r"'.*S\.h5' cannot be written"),
        partial(tmp_path / "file" / "S.h5", ASKED),
    ):
        pass
