"""Transformer layers on the cells of a level, with global tokens beside them."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wsizoo.ops import alibi_slopes, grid_attention, rotate
from wsizoo_plugin_span import fused
from wsizoo_plugin_span.positions import alibi_table, rotary_width
from wsizoo_plugin_span.pyramid import Level

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leakyrelu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


class DropPath(nn.Module):
    """Drops whole rows in training, and scales the others up."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.share == 0:
            return x
        keep = torch.rand(len(x), 1, dtype=x.dtype, device=x.device) >= self.share
        return x * keep / (1 - self.share)


class FeedForward(nn.Sequential):
    """Linear, activation, dropout, linear, dropout."""

    def __init__(self, dim: int, hidden: int, activation: str, dropout: float) -> None:
        super().__init__(
            nn.Linear(dim, hidden),
            ACTIVATIONS[activation](),
            nn.Dropout(dropout),
            nn.Linear(hidden, dim),
            nn.Dropout(dropout),
        )


class GridAttention(nn.Module):
    """What the layers share: heads, and how they hear where a token lies.

    Args:
        dim: width E. heads: H. half_window: half a window's side, in cells.
        positions: "rpb", "alibi", "rope", "none". table_std: of the bias table's initialisation.
        rotary_share: share of a head's channels that "rope" rotates.
    """

    table: nn.Parameter | None
    slopes: Tensor | None

    def __init__(
        self,
        dim: int,
        heads: int,
        half_window: int,
        positions: str = "rpb",
        table_std: float = 0.02,
        attention_dropout: float = 0.0,
        rotary_share: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.half_window = heads, half_window
        edge = 4 * half_window - 1
        self.table = None
        if positions == "rpb":
            self.table = nn.Parameter(torch.empty(heads, edge, edge))
            nn.init.trunc_normal_(self.table, std=table_std)
        self.register_buffer("slopes", alibi_slopes(heads) if positions == "alibi" else None)
        rotates = positions == "rope"
        self.rotary = rotary_width(dim // heads, rotary_share) if rotates else 0
        self.attn_drop = attention_dropout

    def make_projections(self, dim: int, share: bool) -> None:
        """Queries, keys and values of two attentions, which may share them."""
        self.q1, self.k1, self.v1 = (nn.Linear(dim, dim) for _ in range(3))
        if share:
            self.q2, self.k2, self.v2 = self.q1, self.k1, self.v1
        else:
            self.q2, self.k2, self.v2 = (nn.Linear(dim, dim) for _ in range(3))

    @property
    def weight_dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

    def bias(self) -> Tensor | None:
        """(H, 4w - 1, 4w - 1) by the offset of the key from the query, or None."""
        if self.slopes is not None:
            return alibi_table(self.slopes, 2 * self.half_window - 1)
        return self.table

    def split(self, x: Tensor) -> Tensor:
        """(T, E) -> (T, H, D)."""
        return x.unflatten(-1, (self.heads, -1))

    def turned(self, x: Tensor, level: Level) -> Tensor:
        """(T, E) of queries or keys of a level's tokens -> (T, H, D), rotated."""
        split = self.split(x)
        if not self.rotary:
            return split
        return rotate(split, level.angles(self.rotary, split.dtype))

    def among(self, q: Tensor, k: Tensor, v: Tensor, level: Level, pattern: str) -> Tensor:
        """(T, E) each, attention among the tokens of a level in windows of this pattern."""
        windows = level.neighbourhood(pattern)
        q, k = self.turned(q, level), self.turned(k, level)
        mixed = grid_attention(q, k, self.split(v), windows, self.bias(), self.weight_dropout)
        return cast(Tensor, mixed.flatten(1))


class SpanLayer(GridAttention):
    """One layer: local attention plus a second one, an output map, a feed-forward part.

    X = [tokens; global tokens]; Y = X + out(attention(norm1(X))); Z = Y + ffn(norm2(Y)).

    Args:
        dim, heads, half_window, positions, table_std, attention_dropout, rotary_share: see
            `GridAttention`.
        attention: "long": q1, k1, v1 over the union of regular and shifted window, q2, k2, v2
            between tokens and global tokens; "long_noshift": the same over regular windows; "swin":
            q1, k1, v1 over shifted and q2, k2, v2 over regular windows, global tokens alone.
        share_qkv: q2, k2, v2 are q1, k1, v1.
        ff_ratio, activation: of the feed-forward part. dropout: after its maps and after `out`.
        drop_path: share of rows that skip a part, training only.

    Source: SPAN (2026), Section 3. Both attentions' outputs are summed before one output map.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        half_window: int,
        attention: str = "long",
        positions: str = "rpb",
        table_std: float = 0.02,
        share_qkv: bool = False,
        ff_ratio: float = 2.0,
        activation: str = "relu",
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        rotary_share: float = 1.0,
    ) -> None:
        super().__init__(
            dim, heads, half_window, positions, table_std, attention_dropout, rotary_share
        )
        self.attention = attention
        self.norm1 = nn.LayerNorm(dim)
        self.make_projections(dim, share_qkv)
        self.out = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(dropout)
        self.norm2 = nn.LayerNorm(dim)
        hidden = int(dim * ff_ratio)
        self.ffn_in, self.act = nn.Linear(dim, hidden), ACTIVATIONS[activation]()
        self.ffn_out, self.ffn_drop = nn.Linear(hidden, dim), nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    @property
    def pattern(self) -> str:
        """Of the windows of the local attention; not "swin", which has two."""
        return "union" if self.attention == "long" else "regular"

    def forward(
        self, tokens: Tensor, globals_: Tensor, level: Level, need_tokens: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Tokens (T, E) of a level and global tokens (B, M, E) of its slides, mapped to the same.

        Args:
            need_tokens: False: only the global tokens count; the tokens may come back anyhow.
        """
        if fused.runs(self, tokens):
            return fused.run(self, tokens, globals_, level, need_tokens)
        x = torch.cat([tokens, globals_.flatten(0, 1)])  # (T + B M, E)
        y = x + self.drop_path(self.proj_drop(self.out(self._attend(self.norm1(x), level))))
        hidden = self.ffn_drop(self.act(self.ffn_in(self.norm2(y))))
        z = y + self.drop_path(self.ffn_drop(self.ffn_out(hidden)))
        return z[: len(level)], z[len(level) :].view_as(globals_)

    def _attend(self, x: Tensor, level: Level) -> Tensor:
        """(T + B M, E) -> the sum of both attentions' outputs."""
        tokens = x[: len(level)]
        q, k, v = self.q1(tokens), self.k1(tokens), self.v1(tokens)
        if self.attention == "swin":
            local = self.among(q, k, v, level, "shifted")
            q, k, v = self.q2(tokens), self.k2(tokens), self.v2(tokens)
            local = local + self.among(q, k, v, level, "regular")
        else:
            local = self.among(q, k, v, level, self.pattern)
        others = len(x) - len(tokens)
        mixed = torch.cat([local, local.new_zeros(others, local.shape[1])])
        if others and self.attention != "swin":
            mixed = mixed + self._with_globals(x, level)
        return mixed

    def _with_globals(self, x: Tensor, level: Level) -> Tensor:
        """(T + B M, E) -> the same: tokens hear their slide's global tokens, and those hear all.

        Outsiders of the level take no part. Global tokens lie at cell (0, 0): they do not rotate.
        """
        n = len(level)
        parts = []
        for project, turns in ((self.q2, True), (self.k2, True), (self.v2, False)):
            whole = project(x)
            split = self.turned(whole[:n], level) if turns else self.split(whole[:n])
            parts.append((split, self.split(whole[n:]).unflatten(0, (level.n_slides, -1))))
        (q, q_g), (k, k_g), (v, v_g) = parts
        heard, told = torch.zeros_like(q), []
        for b in range(level.n_slides):
            inner = level.inner(b)
            heard[inner] = self._softmax(q[inner], k_g[b], v_g[b])
            keys, values = torch.cat([k[inner], k_g[b]]), torch.cat([v[inner], v_g[b]])
            told.append(self._softmax(q_g[b], keys, values))
        return torch.cat([heard, *told]).flatten(1)

    def _softmax(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(n, H, D), (m, H, D) twice -> (n, H, D)."""
        if len(q) == 0:
            return q
        heads_first = (t.transpose(0, 1)[None] for t in (q, k, v))  # (1, H, n, D)
        mixed = F.scaled_dot_product_attention(*heads_first, dropout_p=self.weight_dropout)
        return mixed[0].transpose(0, 1)

    def global_weights(self, tokens: Tensor, globals_: Tensor, level: Level) -> Tensor | None:
        """(T,) attention that a slide's global tokens pay to each token, mean over them and heads.

        Args: the layer's inputs. None: they hear nothing ("swin", or none of them).
        """
        if self.attention == "swin" or globals_.shape[1] == 0:
            return None
        k, k_g = self.k2(self.norm1(tokens)), self.k2(self.norm1(globals_))
        keys, keys_g = self.turned(k, level), self.split(k_g)  # (T, H, D), (B, M, H, D)
        queries = self.split(self.q2(self.norm1(globals_)))  # (B, M, H, D)
        weights = tokens.new_zeros(len(level))
        for b in range(level.n_slides):
            inner = level.inner(b)
            every = torch.cat([keys[inner], keys_g[b]])  # (n + M, H, D)
            scores = torch.einsum("mhd,thd->mht", queries[b], every) / every.shape[-1] ** 0.5
            paid = torch.softmax(scores, -1).mean((0, 1))  # (n + M,)
            weights[inner] = paid[: len(paid) - len(keys_g[b])]
        return weights


class TwoStepLayer(GridAttention):
    """ "tradswin": two layers in one, attention over shifted windows, then over regular ones.

    Global tokens hear nothing. Both share the table of biases.

    Args: as `SpanLayer`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        half_window: int,
        positions: str = "rpb",
        table_std: float = 0.02,
        share_qkv: bool = False,
        ff_ratio: float = 2.0,
        activation: str = "relu",
        attention_dropout: float = 0.0,
        dropout: float = 0.0,
        drop_path: float = 0.0,
        rotary_share: float = 1.0,
    ) -> None:
        super().__init__(
            dim, heads, half_window, positions, table_std, attention_dropout, rotary_share
        )
        hidden = int(dim * ff_ratio)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(dim) for _ in range(4))
        self.make_projections(dim, share_qkv)
        self.out, self.out2 = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.ffn = FeedForward(dim, hidden, activation, dropout)
        self.ffn2 = FeedForward(dim, hidden, activation, dropout)
        self.proj_drop, self.drop_path = nn.Dropout(dropout), DropPath(drop_path)

    def forward(
        self, tokens: Tensor, globals_: Tensor, level: Level, need_tokens: bool = True
    ) -> tuple[Tensor, Tensor]:
        """See `SpanLayer`."""
        x = torch.cat([tokens, globals_.flatten(0, 1)])  # (T + B M, E)
        first = (self.norm1, self.q1, self.k1, self.v1, self.out, self.norm2, self.ffn)
        second = (self.norm3, self.q2, self.k2, self.v2, self.out2, self.norm4, self.ffn2)
        for pattern, parts in (("shifted", first), ("regular", second)):
            norm, q, k, v, out, norm_after, ffn = parts
            n = norm(x[: len(level)])
            local = self.among(q(n), k(n), v(n), level, pattern)
            mixed = F.pad(local, (0, 0, 0, len(x) - len(local)))
            x = x + self.drop_path(self.proj_drop(out(mixed)))
            x = x + self.drop_path(ffn(norm_after(x)))
        return x[: len(level)], x[len(level) :].view_as(globals_)

    def global_weights(self, tokens: Tensor, globals_: Tensor, level: Level) -> Tensor | None:
        """None: global tokens hear nothing."""
        return None
