"""Slides read ahead by threads, in the order in which a training shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from wsizoo.augment import only_rows
from wsizoo.bag import Bag
from wsizoo.errors import DataError, WsizooError

Augment = Callable[[Bag, torch.Generator, float], Bag]
AHEAD = 2  # slides a thread may have read before they are wanted


class Slides(Protocol):
    """Slides with their targets, read when asked for, also by several threads at once.

    `names`, one a slide, if there is such an attribute, name those that cannot be read.
    """

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Bag: ...


@dataclass(frozen=True)
class EachOf:
    """Slides one after another, read anew by each loop over them."""

    slides: Slides

    def __iter__(self) -> Iterator[Bag]:
        return (self.slides[index] for index in range(len(self.slides)))


@dataclass(frozen=True)
class Step:
    """One optimiser step.

    Args:
        passes: slides of each pass of this process, by index.
        total: slides of all processes.
    """

    passes: tuple[tuple[int, ...], ...]
    total: int


def steps_of(
    order: Sequence[int], batch_size: int, accumulate: int = 1, rank: int = 0, world: int = 1
) -> list[Step]:
    """An epoch as optimiser steps; passes are dealt to the processes in turn.

    The last step has the slides that are left. What a step sees together depends on
    batch_size x accumulate x world alone.
    """
    size = batch_size * accumulate * world
    steps = []
    for start in range(0, len(order), size):
        together = order[start : start + size]
        passes = [tuple(together[i : i + batch_size]) for i in range(0, len(together), batch_size)]
        steps.append(Step(tuple(passes[rank::world]), len(together)))
    return steps


def read_ahead(
    slides: Slides, order: Sequence[int], workers: int, change: Callable[[Bag, int], Bag]
) -> Generator[Bag, None, None]:
    """The slides in this order, each as `change(bag, index)` makes it.

    Args:
        workers: threads that read; at most 2 slides a thread are ahead. 0: read when wanted.

    Raises:
        DataError, or another of wsizoo's: a slide cannot be read; names it, in its turn.
    """

    def read(index: int) -> Bag:
        try:
            return change(slides[index], index)
        except Exception as error:
            raise _named(error, slides, index) from error

    if not workers:
        yield from map(read, order)
        return
    pool = ThreadPoolExecutor(workers, "wsizoo-reading")
    waiting: deque[Future[Bag]] = deque()
    try:
        for index in order:
            if len(waiting) == AHEAD * workers:
                yield waiting.popleft().result()
            waiting.append(pool.submit(read, index))
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _named(error: Exception, slides: Slides, index: int) -> WsizooError:
    names = getattr(slides, "names", None)
    name = f"slide '{names[index]}'" if names is not None else f"slide number {index}"
    if isinstance(error, WsizooError):
        return error if name in str(error) else type(error)(f"{name}: {error}")
    return DataError(f"{name} cannot be read: {type(error).__name__}: {error}")


def some_patches(bag: Bag, most: int, generator: torch.Generator) -> Bag:
    """At most so many patches, drawn without replacement, in the order they had."""
    if len(bag) <= most:
        return bag
    drawn = torch.randperm(len(bag), generator=generator)[:most]
    return only_rows(bag, drawn.sort().values.to(bag.device))
