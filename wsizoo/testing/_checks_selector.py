"""Conformance checks of selectors alone."""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo.testing._checks_bag import both_modes
from wsizoo.testing._subject import N_PATCHES, Subject, require


def check_index_ascending(subject: Subject) -> None:
    """Kept patches are named once each, in the order of the bag."""
    for mode, output in both_modes(subject):
        index = output.index
        if index is None:
            continue
        require(
            isinstance(index, Tensor) and index.ndim == 1 and index.dtype == torch.int64,
            f"in {mode}, index is {index!r}, expected (K,) int64",
        )
        require(len(index) > 0, f"in {mode} it keeps no patch at all")
        inside = bool((index >= 0).all() and (index < N_PATCHES).all())
        require(
            inside,
            f"in {mode}, index goes from {int(index.min())} to {int(index.max())} of {N_PATCHES}",
        )
        require(bool((index.diff() > 0).all()), f"in {mode}, index is not strictly ascending")


def check_rows_are_the_bags(subject: Subject) -> None:
    """In eval a selector chooses; it changes neither features nor coordinates."""
    bag = subject.bag()
    output = both_modes(subject, bag)[0][1]
    expected = bag if output.index is None else bag.subset(output.index)
    got = output.bag
    require(len(got) == len(expected), f"{len(got)} patches for an index of {len(expected)}")
    same = torch.equal(got.features, expected.features)
    require(same, "in eval the features are not the rows of the bag at `index`: bag.subset(index)")
    assert expected.coords is not None
    kept = got.coords is not None and torch.equal(got.coords, expected.coords)
    require(kept, "in eval the coords are not the rows of the bag at `index`: bag.subset(index)")
    for name in ("spacing", "footprint", "mpp", "slide_id", "encoder"):
        mine, theirs = getattr(got, name), getattr(bag, name)
        require(mine == theirs, f"{name} of the bag it hands on is {mine!r}, was {theirs!r}")


def check_width_handed_on(subject: Subject) -> None:
    """The aggregator is built to `out_dim`, in training as in eval."""
    width = subject.make().out_dim
    for mode, output in both_modes(subject):
        got = output.bag.dim
        require(got == width, f"in {mode} it hands on width {got}, out_dim is {width}")
        n, kept = len(output.bag), N_PATCHES if output.index is None else len(output.index)
        require(
            n == kept, f"in {mode} it hands on {n} patches and names {kept}: index=None means all"
        )


def check_weights_in_training(subject: Subject) -> None:
    """In eval a patch is kept or not; weights and learning alone belong to training."""
    (_, quiet), (_, output) = both_modes(subject)
    require(quiet.weights is None, "in eval it weighs patches: choose them by index instead")
    require(not quiet.alone, "in eval it says that it learns alone")
    if output.weights is None:
        return
    got, n = output.weights, len(output.bag)
    fits = isinstance(got, Tensor) and got.shape == (n,) and got.is_floating_point()
    require(fits, f"in training, weights are {getattr(got, 'shape', got)}, expected ({n},) float")
    lowest = float(got.detach().min())
    require(lowest >= 0, f"in training, a weight is {lowest:.3g}, below 0")


SELECTOR = (
    check_index_ascending,
    check_rows_are_the_bags,
    check_width_handed_on,
    check_weights_in_training,
)
