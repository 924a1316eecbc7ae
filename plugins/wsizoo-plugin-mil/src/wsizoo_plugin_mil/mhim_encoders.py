"""The networks of MHIM-MIL, three kinds, and how each ranks the patches that are masked."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wsizoo import Bag
from wsizoo.mil.options import check_heads
from wsizoo.ops import RowLinear, RowSequential
from wsizoo_plugin_mil.attention_pooling import EMBEDDING_ACTIVATIONS, AttentionScores, pooled
from wsizoo_plugin_mil.dsmil import DSMIL, critical_patches
from wsizoo_plugin_mil.initialisation import begin
from wsizoo_plugin_mil.nystrom import NystromAttention
from wsizoo_plugin_mil.ppeg import PPEG
from wsizoo_plugin_mil.survival import SURVIVAL, risk
from wsizoo_plugin_mil.transmil import Block

HIDDEN = 128
HEADS = 8
LEAST_EDGE = 7  # of the square that PPEG sees


@dataclass(frozen=True)
class Encoded:
    """A slide of n tokens.

    Args:
        rows: (R, E) the slide's vectors.
        logits: (C,), or None of an encoder without a classifier.
        scores: () -> (n,) importance of each token.
        attention: () -> (H, n) by which v1 ranks tokens, head by head.
        judged: () -> (n,) `likeliest` of what each token brings into the logits; None where v2
            ranks as v1.
        streams: of DSMIL, (2, C): the logits of the slide and of the best tokens, of which `logits`
            are the mean.
    """

    rows: Tensor
    logits: Tensor | None
    scores: Callable[[], Tensor]
    attention: Callable[[], Tensor]
    judged: Callable[[], Tensor] | None = None
    streams: Tensor | None = None

    def hardness(self, by_class: bool) -> Tensor:
        """(H, n) By which patches are masked.

        Args:
            by_class: `judged` (one row); or the attention.
        """
        if by_class and self.judged is not None:
            return self.judged()[None]
        return self.attention()


def likeliest(logits: Tensor, task: str | None) -> Tensor:
    """(n, C) -> (n,): the probability of the likeliest class; of survival the risk."""
    return risk(logits) if task == SURVIVAL else torch.softmax(logits, 1).amax(1)


class Network(nn.Module):
    """What student and teacher are: an embedding and an encoder with its classifier."""

    def __init__(
        self,
        in_dim: int,
        dim: int,
        activation: str,
        dropout: float,
        encoder: nn.Module,
    ) -> None:
        super().__init__()
        act = EMBEDDING_ACTIVATIONS[activation]()
        self.embed = RowSequential(RowLinear(in_dim, dim), act, nn.Dropout(dropout))
        self.encoder = encoder
        begin(self, "xavier")


def with_buffers(module: nn.Module) -> Any:
    """A copy whose parameters are buffers: nothing trains them, and they are in every state."""
    twin = copy.deepcopy(module)
    for part in twin.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach().clone())
    return twin


class AttentionEncoder(nn.Module):
    """Plain attention pooling without biases, and a linear classifier."""

    def __init__(self, dim: int, n_outputs: int | None, activation: str, task: str | None) -> None:
        super().__init__()
        self.task = task
        self.scores = AttentionScores(dim, HIDDEN, gated=False, bias=False, activation=activation)
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None

    def forward(self, tokens: Tensor) -> Encoded:
        (weights,), (rows,) = pooled([self.scores(tokens)], tokens)  # (n, 1), (1, E)
        classify = self.classify
        if classify is None:
            return Encoded(rows, None, lambda: weights[:, 0], weights.t)

        def judged() -> Tensor:
            """The first class's bias is added to all classes, as published."""
            parts = weights * (tokens @ classify.weight.t()) + classify.bias[0]  # (n, C)
            return likeliest(parts, self.task)

        return Encoded(rows, classify(rows[0]), lambda: weights[:, 0], weights.t, judged)


class TransMILEncoder(nn.Module):
    """TransMIL's layers; PPEG sees the tokens on a square, and hands on only them."""

    def __init__(self, dim: int, n_outputs: int | None, activation: str, task: str | None) -> None:
        super().__init__()
        check_heads("MHIM", dim, heads=HEADS)
        self.task = task
        self.token = nn.Parameter(1e-6 * torch.randn(1, 1, dim))
        self.blocks = nn.ModuleList(Block(dim, HEADS, dropout=0.1) for _ in range(2))
        self.positions = PPEG(dim)
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, n_outputs) if n_outputs else None

    def forward(self, tokens: Tensor) -> Encoded:
        first, second = self.blocks
        h, factors = first(torch.cat([self.token, tokens[None]], 1))  # (1, 1 + n, E)
        h, _ = second(torch.cat([h[:, :1], self.placed(h[:, 1:])], 1))
        rows = self.norm(h[:, 0])  # (1, E)
        factors, attend, classify = factors.detached(), first.attention, self.classify
        assert isinstance(attend, NystromAttention)

        def attention() -> Tensor:
            row: Tensor = factors.token_row(0)[0, :, 1:]  # (H, n)
            return row

        def judged() -> Tensor:
            """Through the first layer's way out of attention and its dropout."""
            assert classify is not None
            values = factors.v[0, :, factors.padding + 1 :]  # (H, n, d)
            joined = (attention()[..., None] * values).transpose(0, 1).flatten(1)
            parts: Tensor = attend.drop(attend.out(joined))  # (n, E)
            return likeliest(parts @ classify.weight.t() + classify.bias[0], self.task)

        def scores() -> Tensor:
            return attention().mean(0)

        if classify is None:
            return Encoded(rows, None, scores, attention)
        return Encoded(rows, classify(rows[0]), scores, attention, judged)

    def placed(self, tokens: Tensor) -> Tensor:
        """PPEG on a square that the first tokens fill, and then zeros where it is too small."""
        n = tokens.shape[1]
        edge = math.isqrt(n - 1) + 1
        square = torch.cat([tokens, tokens[:, : edge**2 - n]], 1)
        if edge < LEAST_EDGE:
            square = nn.functional.pad(square, (0, 0, 0, LEAST_EDGE**2 - edge**2))
            edge = LEAST_EDGE
        found: Tensor = self.positions(square, edge, edge)
        return found[:, :n]


class DSMILEncoder(nn.Module):
    """The authors' DSMIL with values; the logits are the mean of both its streams."""

    def __init__(self, dim: int, n_outputs: int | None, activation: str, task: str | None) -> None:
        super().__init__()
        self.dim, self.task = dim, task
        self.dsmil = DSMIL(dim, n_outputs, passing_v=True, task=task)
        if self.dsmil.classify is not None:
            self.dsmil.classify.reset_parameters()

    def forward(self, tokens: Tensor) -> Encoded:
        bag = Bag(tokens)
        found = self.dsmil(bag)
        rows = found.slide.view(-1, self.dim)  # (C, E)
        each = found.instance_logits  # (n, C)
        if each is None:
            return Encoded(rows, None, lambda: found.scores, lambda: found.scores[None])
        best = critical_patches(each, [bag])[1][0]
        streams = torch.stack([found.logits, best])

        def hardest() -> Tensor:
            return (risk(each) if self.task == SURVIVAL else each.amax(1))[None]

        return Encoded(rows, streams.mean(0), lambda: found.scores, hardest, streams=streams)
