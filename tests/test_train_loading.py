import threading
import time
from collections.abc import Sequence

import pytest
import torch

from tests.toy_training import ToySlides
from wsizoo.bag import Bag
from wsizoo.errors import BagError, DataError
from wsizoo.train.loading import AHEAD, EachOf, Step, read_ahead, some_patches, steps_of


def as_it_is(bag: Bag, index: int) -> Bag:
    return bag


def names(slides: Sequence[Bag], order: Sequence[int], workers: int) -> list[str]:
    return [bag.slide_id for bag in read_ahead(slides, order, workers, as_it_is)]


def test_all_slides_are_read_anew_by_each_loop_over_them() -> None:
    slides = ToySlides(3)
    every = EachOf(slides)
    assert slides.read == []
    assert [[bag.slide_id for bag in every] for _ in range(2)] == [["s0", "s1", "s2"]] * 2
    assert slides.read == [0, 1, 2] * 2


class Uneven(ToySlides):
    """The first ones take longest; counts threads that read at once."""

    most, now = 0, 0

    def __getitem__(self, index: int) -> Bag:
        self.now += 1
        self.most = max(self.most, self.now)
        time.sleep(0.02 * (len(self) - index) / len(self))
        self.now -= 1
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_slides_come_in_order(workers: int) -> None:
    slides = Uneven(6)
    order = [4, 0, 5, 2, 1, 3, 0]
    assert names(slides, order, workers) == [f"s{i}" for i in order]
    assert slides.most <= max(1, workers)
    assert names(slides, [], workers) == []


def test_what_is_ahead_is_bounded() -> None:
    slides = ToySlides(30)
    reader = read_ahead(slides, range(30), 2, as_it_is)
    for taken in range(1, 11):
        next(reader)
        assert len(slides.read) < taken + AHEAD * 2 + 1
    reader.close()
    read = len(slides.read)
    time.sleep(0.02)
    assert len(slides.read) == read
    assert not [t for t in threading.enumerate() if t.name.startswith("wsizoo-reading")]


class Broken(ToySlides):
    """Slide 2 cannot be read."""

    error: Exception = ValueError("no such thing")

    def __getitem__(self, index: int) -> Bag:
        if index == 2:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_slide_that_cannot_be_read_is_named_in_its_turn(workers: int) -> None:
    reader = read_ahead(Broken(4), [1, 0, 2, 3], workers, as_it_is)
    assert [next(reader).slide_id, next(reader).slide_id] == ["s1", "s0"]
    with pytest.raises(DataError, match="slide 's2' cannot be read: ValueError: no such thing"):
        next(reader)


def test_an_error_of_ours_stays_of_its_kind() -> None:
    slides = Broken(4)
    slides.error = BagError("coords are missing")
    with pytest.raises(BagError, match=r"^slide 's2': coords are missing"):
        names(slides, [2], 1)
    slides.error = BagError("slide 's2' has no coords")
    with pytest.raises(BagError, match=r"^slide 's2' has no coords"):
        names(slides, [2], 1)
    del slides.names
    with pytest.raises(BagError, match=r"^slide number 2: slide 's2' has no coords"):
        names(slides, [2], 1)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_slide_is_shown_once_whatever_the_processes(world: int) -> None:
    order = [3, 1, 4, 0, 5, 2, 6]
    each = [steps_of(order, 2, 1, rank, world) for rank in range(world)]
    shown = [i for steps in each for step in steps for one in step.passes for i in one]
    assert sorted(shown) == sorted(order)
    assert len({len(steps) for steps in each}) == 1
    for together in zip(*each, strict=True):
        seen = sum(len(one) for step in together for one in step.passes)
        assert {step.total for step in together} == {seen}


def test_a_step_sees_the_same_slides_packed_accumulated_or_shared() -> None:
    order = list(range(5))
    assert steps_of(order, 4) == [Step(((0, 1, 2, 3),), 4), Step(((4,),), 1)]
    assert steps_of(order, 2, 2) == [Step(((0, 1), (2, 3)), 4), Step(((4,),), 1)]
    assert steps_of(order, 2, 1, 0, 2) == [Step(((0, 1),), 4), Step(((4,),), 1)]
    assert steps_of(order, 2, 1, 1, 2) == [Step(((2, 3),), 4), Step((), 1)]


def test_some_patches_are_drawn_in_the_order_they_had() -> None:
    bag = ToySlides(20)[15]
    bag = bag.replace(target={"instances": torch.arange(20)}, parts=torch.tensor([0, 8, 20]))
    drawn = some_patches(bag, 6, torch.Generator().manual_seed(0))
    kept = drawn.coords[:, 0]
    assert len(drawn) == 6 and torch.equal(kept, kept.unique())
    assert torch.equal(drawn.features, bag.features[kept])
    assert torch.equal(drawn.target["instances"], kept)
    assert drawn.parts.tolist() == [0, int((kept < 8).sum()), 6]
    assert some_patches(bag, 20, torch.Generator()) is bag
