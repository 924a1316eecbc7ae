"""Rows of different length as one batch, and patches of a slide at even distances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from wsizoo_plugin_sparselearn.vlm.text import SLIDE, UNLABELLED


def padded(rows: Sequence[Tensor], left: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (L_b, H) as a batch: (B, L, H), mask (B, L) int64, positions (B, L) int64.

    Args:
        left: fill up before the rows, as generation needs, where all go on from one end; else after
            them. Filled places have mask 0. Positions count the places of a row from 0, so that a
            model with learned positions gives what it gives a row alone.
    """
    length = max(map(len, rows))
    x = rows[0].new_zeros((len(rows), length, rows[0].shape[1]))
    mask = torch.zeros((len(rows), length), dtype=torch.long, device=x.device)
    batch = []
    for i, row in enumerate(rows):
        empty = x[i, : length - len(row)]
        batch.append(torch.cat([empty, row] if left else [row, empty]))
        own = slice(length - len(row), None) if left else slice(len(row))
        mask[i, own] = 1
    return torch.stack(batch), mask, (mask.cumsum(1) - 1).clamp(min=0)


def padded_labels(rows: Sequence[Sequence[int]]) -> Tensor:
    """Labels (B, L) int64 of rows that are filled up after them."""
    length = max(map(len, rows))
    return torch.tensor([[*row, *[UNLABELLED] * (length - len(row))] for row in rows])


def evenly(n: int, most: int, device: torch.device) -> Tensor | None:
    """Rows (most,) int64 of n at even distances, the first and last among them; None: all fit."""
    if n <= most:
        return None
    return torch.linspace(0, n - 1, most, dtype=torch.float64, device=device).long()


def spread(labels: Sequence[int], ids: Sequence[int], size: int) -> list[int]:
    """Labels with as many places for the slide as it has tokens."""
    if SLIDE not in ids:
        return list(labels)
    at = list(ids).index(SLIDE)
    return [*labels[:at], *([UNLABELLED] * size), *labels[at + 1 :]]


def up_to(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Ids before the first that ends an answer."""
    end = next((i for i, one in enumerate(ids) if one in stops), len(ids))
    return list(ids[:end])


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision is widened before it is summed up."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
