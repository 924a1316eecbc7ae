"""Convolution slots: how tokens and global tokens pass from one stage to the next.

A slot is a block on the tokens, and a way for the global tokens beside it. Blocks take the rulebook
between the two grids, and `of_globals` runs a global token through a block's own weights, as if
every cell under the kernel held it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from wsizoo.ops import (
    Rulebook,
    patch_merge,
    pixel_shuffle_linear,
    sparse_conv2d,
    sparse_conv_transpose2d,
)
from wsizoo_plugin_span import fused
from wsizoo_plugin_span.fused_rows import pool, project
from wsizoo_plugin_span.layers import ACTIVATIONS
from wsizoo_plugin_span.settings import Settings, UNetSettings


class Block(nn.Module):
    """The token path of a slot.

    `keeps_zeros`: a row of zeros stays one.
    """

    keeps_zeros = False

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        """(T, C) of the stage before -> (T', C') of the next."""
        raise NotImplementedError

    def of_globals(self, globals_: Tensor) -> Tensor:
        """(..., C) -> (..., C')."""
        raise NotImplementedError


class Keep(Block):
    """Tokens as they are."""

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        return tokens

    def of_globals(self, globals_: Tensor) -> Tensor:
        return globals_


class Project(Block):
    """Linear maps of each token: one, or two with an activation between.

    Args:
        dim, out_dim: widths. hidden: of the layer between; None: one map. norm: LayerNorm before.
        dropout: after the map, or after the activation; `dropout_first`: before the one map.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        bias: bool = False,
        hidden: int | None = None,
        activation: str | None = None,
        dropout: float = 0.0,
        dropout_first: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if norm else None
        self.dropout, self.dropout_first = nn.Dropout(dropout), dropout_first
        self.first = nn.Linear(dim, hidden or out_dim, bias=bias)
        self.act = None if activation is None else ACTIVATIONS[activation]()
        self.second = None if hidden is None else nn.Linear(hidden, out_dim, bias=bias)
        self.keeps_zeros = not (bias or norm or hidden)

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        plain = self.norm is None and self.second is None and not self.dropout_first
        if plain and fused.fits(tokens, self.first):
            return project(tokens, self.first.weight, self.first.bias, active(self.dropout))
        x = tokens if self.norm is None else self.norm(tokens)
        if self.act is not None and self.second is not None:
            return self.second(self.dropout(self.act(self.first(x))))
        return self.first(self.dropout(x)) if self.dropout_first else self.dropout(self.first(x))

    def of_globals(self, globals_: Tensor) -> Tensor:
        return self(globals_, None)


class Normed(Block):
    """A block with a LayerNorm before ("pre") or after ("post") it."""

    def __init__(self, dim: int, out_dim: int, norm: str) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(dim) if norm == "pre" else None
        self.output_norm = nn.LayerNorm(out_dim) if norm == "post" else None

    def before(self, x: Tensor) -> Tensor:
        return x if self.input_norm is None else self.input_norm(x)

    def after(self, x: Tensor) -> Tensor:
        return x if self.output_norm is None else self.output_norm(x)


class DownConv(Normed):
    """Convolution over the occupied cells under each kernel ("patchconv", "dwpatchconv").

    Differs in compat="published": the bias is added before the division by `edge`, and a global
    token is not divided at all.
    """

    def __init__(self, dim: int, out_dim: int, groups: int, edge: str, settings: Settings) -> None:
        super().__init__(dim, out_dim, settings.conv_norm)
        kernel = settings.kernel
        self.groups, self.edge, self.edge_eps = groups, edge, settings.edge_eps
        self.published = settings.published
        self.weight = nn.Parameter(torch.empty(out_dim, dim // groups, kernel, kernel))
        self.bias = init_conv(self.weight, settings.conv_bias, out_dim)
        plain = groups == dim == out_dim and self.bias is None
        self.depthwise_mean = plain and edge == "count"

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        norm = self.input_norm
        if norm is not None and self.depthwise_mean and fused.fits(tokens, norm):
            kernel = self.weight.flatten(1)  # (C, k^2)
            return pool(tokens, norm.weight, norm.bias, kernel, book, norm.eps)
        x = sparse_conv2d(
            self.before(tokens),
            self.weight,
            book,
            self.bias,
            self.edge,
            self.edge_eps,
            bias_after_edge=not self.published,
        )
        return self.after(x)

    def of_globals(self, globals_: Tensor) -> Tensor:
        x = grouped_linear(self.before(globals_), self.weight.sum((2, 3)), self.groups)
        if not self.published and self.edge == "count":
            x = x / self.weight[0, 0].numel()
        if not self.published and self.edge == "partial":
            x = x / self.weight.abs().sum((1, 2, 3)).clamp(min=self.edge_eps)
        return self.after(x if self.bias is None else x + self.bias)


class Merge(Normed):
    """The four tokens of 2 x 2 cells side by side, then a linear map ("patchmerge").

    Differs in compat="published": a global token is repeated channel by channel, although tokens
    are laid position by position, and is not divided by the count.
    """

    def __init__(self, dim: int, out_dim: int, edge: str, settings: Settings) -> None:
        super().__init__(4 * dim, out_dim, settings.conv_norm)
        self.edge, self.published = edge, settings.published
        self.map = nn.Linear(4 * dim, out_dim, bias=settings.conv_bias)

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        four = patch_merge(tokens, book, "none" if self.edge == "none" else "count")  # (T', 4 C)
        return self.after(self.map(self.before(four)))

    def of_globals(self, globals_: Tensor) -> Tensor:
        if self.published:
            four = globals_.repeat_interleave(4, -1)
        else:
            four = torch.cat([globals_] * 4, -1)
            four = four if self.edge == "none" else four / 4
        return self.after(self.map(self.before(four)))


class UpConv(Block):
    """Transposed convolution back to the cells of a finer stage ("patchinvs", "dwpatchinvs").

    Its norm always comes after, wherever the other blocks' is.
    """

    def __init__(self, dim: int, out_dim: int, groups: int, settings: Settings) -> None:
        super().__init__()
        kernel, self.groups = settings.kernel, groups
        self.weight = nn.Parameter(torch.empty(dim, out_dim // groups, kernel, kernel))
        self.bias = init_conv(self.weight, settings.conv_bias, out_dim)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        return self.norm(sparse_conv_transpose2d(tokens, self.weight, book, self.bias, self.groups))

    def of_globals(self, globals_: Tensor) -> Tensor:
        mean = self.weight.mean((2, 3))  # (C, C' / groups)
        rows = mean.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1)
        x = grouped_linear(globals_, rows, self.groups)
        return self.norm(x if self.bias is None else x + self.bias)


class PixelShuffle(Normed):
    """Each token becomes the s x s cells under it that are occupied ("pixelshuffle").

    Initialised so that all cells under a token start equal (ICNR, Aitken et al. 2017).
    Differs in compat="published": a global token's s^2 parts are averaged as if they lay position
    by position, although tokens' lie channel by channel.
    """

    def __init__(self, dim: int, out_dim: int, settings: Settings) -> None:
        super().__init__(dim, out_dim, settings.conv_norm)
        self.parts, self.published = settings.stride**2, settings.published
        self.map = nn.Linear(dim, out_dim * self.parts, bias=settings.conv_bias)
        with torch.no_grad():
            one = torch.empty(out_dim, dim)
            nn.init.kaiming_normal_(one, mode="fan_out", nonlinearity="relu")
            self.map.weight.copy_(one.repeat_interleave(self.parts, 0))
            if self.map.bias is not None:
                self.map.bias.zero_()

    def forward(self, tokens: Tensor, book: Rulebook | None) -> Tensor:
        x = self.before(tokens)
        return self.after(pixel_shuffle_linear(x, self.map.weight, book, self.map.bias))

    def of_globals(self, globals_: Tensor) -> Tensor:
        x = self.map(self.before(globals_))
        if self.published:
            return self.after(x.unflatten(-1, (self.parts, -1)).mean(-2))
        return self.after(x.unflatten(-1, (-1, self.parts)).mean(-1))


class Slot(nn.Module):
    """A block on the tokens, and the global tokens' way beside it.

    Args:
        block: on the tokens. dim, out_dim: widths. path: "proj", "identity" or "kernel".
        norm: LayerNorm on the global tokens before "proj" and "identity".
    """

    def __init__(self, block: Block, dim: int, out_dim: int, path: str, norm: bool) -> None:
        super().__init__()
        self.block, self.path = block, path
        needs = path == "proj" or (path == "identity" and dim != out_dim)
        self.global_norm = nn.LayerNorm(dim) if norm and path != "kernel" else None
        self.global_map = nn.Linear(dim, out_dim) if needs else None

    def forward(
        self, tokens: Tensor, globals_: Tensor, book: Rulebook | None = None
    ) -> tuple[Tensor, Tensor]:
        """(T, C) and (B, M, C) -> (T', C') and (B, M, C')."""
        return self.block(tokens, book), self.of_globals(globals_)

    def of_globals(self, globals_: Tensor) -> Tensor:
        if self.path == "kernel":
            return self.block.of_globals(globals_)
        x = globals_ if self.global_norm is None else self.global_norm(globals_)
        return x if self.global_map is None else self.global_map(x)


def input_slot(settings: Settings) -> Slot:
    """From features to the first stage."""
    dim, out_dim, two = settings.in_dim, settings.width(0), settings.input_activation is not None
    block = Project(
        dim,
        out_dim,
        settings.input_bias,
        int(dim * settings.input_ratio) if two else None,
        settings.input_activation,
        settings.input_dropout,
        settings.input_dropout_first,
        settings.input_norm,
    )
    return Slot(block, dim, out_dim, settings.global_path, norm=False)


def down_slot(settings: Settings, stage: int) -> Slot:
    """From encoder stage `stage` - 1 to `stage`."""
    dim, out_dim = settings.width(stage - 1), settings.width(stage)
    name = settings.down
    block: Block
    if name == "linear":
        block = Project(dim, out_dim, settings.conv_bias, dim // 2, "relu")
    elif name == "identity":
        block = Keep()
    elif name == "patchmerge":
        block = Merge(dim, out_dim, settings.edge, settings)
    else:
        groups = dim if name == "dwpatchconv" else settings.conv_groups
        block = DownConv(dim, out_dim, groups, settings.edge, settings)
    return Slot(block, dim, out_dim, settings.global_path, settings.conv_norm == "pre")


def up_slot(settings: UNetSettings, dim: int, out_dim: int) -> Slot:
    """To the next finer stage of the decoder."""
    block: Block
    if settings.up == "pixelshuffle":
        block = PixelShuffle(dim, out_dim, settings)
    else:
        groups = dim if settings.up == "dwpatchinvs" else settings.conv_groups
        block = UpConv(dim, out_dim, groups, settings)
    return Slot(block, dim, out_dim, settings.global_path, settings.conv_norm == "pre")


def reducing_slot(settings: UNetSettings, dim: int, out_dim: int) -> Slot:
    """From what a skip made of a decoder stage back to the stage's width."""
    return Slot(Project(dim, out_dim), dim, out_dim, settings.global_path, norm=False)


def active(dropout: nn.Dropout) -> float:
    """The share it drops now."""
    return dropout.p if dropout.training else 0.0


def grouped_linear(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    """(..., C) with a weight (C', C / groups) -> (..., C'), each group from its own channels."""
    split = x.unflatten(-1, (groups, -1))  # (..., G, C / G)
    by_group = weight.unflatten(0, (groups, -1))  # (G, C' / G, C / G)
    return torch.einsum("...gi,goi->...go", split, by_group).flatten(-2)


def init_conv(weight: Tensor, bias: bool, out_dim: int) -> nn.Parameter | None:
    """Initialise a convolution as torch does, and make its bias if there is one."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    if not bias:
        return None
    bound = 1 / math.sqrt(weight[0].numel())
    return nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))
