import gc
import mmap
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wsizoo.doctor import system_bytes
from wsizoo.ops import memory, scratch
from wsizoo.ops.memory import ALIGNED, Arena

LIKE = torch.empty(0)
LARGE = memory.SMALLEST // 4  # float32 values
needs_arena = pytest.mark.skipif(sys.platform != "linux", reason="ranges are reserved on Linux")


def test_scratch_has_the_shape_dtype_and_device_asked_for() -> None:
    for like in (LIKE, LIKE.double(), LIKE.long()):
        for shape in ((0,), (3, 2), (LARGE, 4)):
            made = scratch(*shape, like=like)
            assert tuple(made.shape) == shape
            assert (made.dtype, made.device) == (like.dtype, like.device)
            assert made.is_contiguous()


@needs_arena
def test_memory_is_used_again_only_when_the_last_that_shares_it_is_gone() -> None:
    first = scratch(LARGE, like=LIKE)
    at, view = first.data_ptr(), first[5:].view(-1, 1)
    del first
    gc.collect()
    assert scratch(LARGE, like=LIKE).data_ptr() != at
    del view
    gc.collect()
    assert scratch(LARGE, like=LIKE).data_ptr() == at


@needs_arena
@settings(max_examples=30)
@given(st.lists(st.tuples(st.integers(1, 5 * ALIGNED), st.integers(0, 7)), max_size=40))
def test_pieces_in_use_never_overlap_and_all_come_back(steps: list[tuple[int, int]]) -> None:
    arena = Arena(1 << 24)
    held: dict[int, torch.Tensor] = {}
    for size, key in steps:
        held.pop(key, None)
        held[key] = arena.take(size)
        held[key].fill_(key)
        assert len(held[key]) == size
        assert all(bool((held[other] == other).all()) for other in held)
    held.clear()
    gc.collect()
    last = arena.take(1 << 24)  # the whole range in one piece
    assert len(last) == 1 << 24


def test_what_lies_free_below_a_block_in_use_goes_back_to_the_system() -> None:
    if memory._trim() is None:
        pytest.skip("the C library is not glibc")
    small = [torch.ones(25_000) for _ in range(2_000)]  # 200 MB, none large enough for pages alone
    last = small.pop()
    small.clear()
    before = system_bytes("self/status", "VmRSS") or 0
    memory.give_back()
    assert before - (system_bytes("self/status", "VmRSS") or 0) > 1.5e8
    assert last.sum() == 25_000


def test_without_glibc_nothing_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    assert memory._trim() is None
    memory.give_back()
    memory._trim.cache_clear()


@needs_arena
def test_an_idle_arena_gives_back_what_it_need_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", ALIGNED)
    arena = Arena(1 << 20)
    piece = arena.take(1 << 19).fill_(7)
    del piece
    gc.collect()
    again = arena.take(1 << 19)
    assert again[:ALIGNED].unique().tolist() == [7]
    assert again[ALIGNED:].unique().tolist() == [0]  # pages that the system gave anew


@needs_arena
def test_memory_behind_what_is_held_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "KEPT", ALIGNED)
    arena = Arena(1 << 20)
    held, large = arena.take(ALIGNED), arena.take(1 << 18)
    assert held is not None
    assert large is not None
    large.fill_(7)
    del large
    gc.collect()
    again = arena.take(1 << 18)
    assert again is not None
    assert int(again[ALIGNED:].max()) == 0


@needs_arena
def test_a_full_arena_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    arena = Arena(1 << 20)
    held = arena.take(1 << 20)
    assert arena.take(1) is None
    monkeypatch.setattr(memory, "_made", [arena])
    assert scratch(LARGE, like=LIKE).shape == (LARGE,)
    del held


@needs_arena
def test_threads_may_drop_what_others_took() -> None:
    arena = Arena(1 << 24)

    def work() -> None:
        for _ in range(200):
            piece = arena.take(3 * ALIGNED).fill_(1)
            assert int(piece.sum()) == 3 * ALIGNED

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(arena.take(1 << 24)) == 1 << 24


@pytest.mark.parametrize("error", [OSError, ValueError])
def test_without_a_range_of_addresses_memory_comes_from_torch(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise error("no")

    monkeypatch.setattr(memory, "_made", [])
    monkeypatch.setattr(mmap, "mmap", refuse)
    assert scratch(LARGE, 2, like=LIKE).shape == (LARGE, 2)
    assert memory._made == [None]
