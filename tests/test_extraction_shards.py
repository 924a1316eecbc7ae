"""wsizoo.extraction.shards: all parts together are the whole, whichever way jobs are counted."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from wsizoo.errors import DataError
from wsizoo.extraction.shards import Shard


@given(n=st.integers(1, 40), items=st.integers(0, 200), first=st.sampled_from([0, 1]))
def test_shards_counted_from_0_or_from_1_have_every_item_once(
    n: int, items: int, first: int
) -> None:
    parts = [Shard.parse(f"{i}/{n}").of(range(items)) for i in range(first, first + n)]
    assert sorted(item for part in parts for item in part) == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("text", ["", "3", "a/b", "17/16", "1/0", "-1/4", "1/2/3"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(DataError, match=r"expected i/n, such as 3/16"):
        Shard.parse(text)


def slurm(task: int, count: int, first: int = 0, step: int = 1) -> dict[str, str]:
    told = {"ID": task, "COUNT": count, "MIN": first, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in told.items()}


@given(n=st.integers(1, 20), first=st.integers(0, 9), step=st.integers(1, 4))
def test_the_tasks_of_a_slurm_array_have_every_item_once(n: int, first: int, step: int) -> None:
    assume(n > 1 or first < 2)
    found: list[int] = []
    for task in range(first, first + n * step, step):
        shard = Shard.of_slurm(slurm(task, n, first, step))
        assert shard is not None
        found += shard.of(range(100))
    assert sorted(found) == list(range(100))


def test_outside_of_a_slurm_array_there_is_no_shard() -> None:
    assert Shard.of_slurm({"SLURM_JOB_ID": "12"}) is None


def test_an_array_with_holes_asks_for_the_shard() -> None:
    with pytest.raises(DataError, match=r"the array has holes .*Say which part it does: --shard"):
        Shard.of_slurm(slurm(9, 3, 1))
    with pytest.raises(DataError, match="say which part this job does: --shard"):
        Shard.of_slurm({"SLURM_ARRAY_TASK_ID": "3"})


def test_one_task_of_an_array_repeated_alone_does_not_do_the_whole_cohort() -> None:
    with pytest.raises(DataError, match=r"one task repeated. Say which part it does: --shard"):
        Shard.of_slurm(slurm(3, 1, 3))
    assert Shard.of_slurm(slurm(1, 1, 1)) == Shard(0, 1)
