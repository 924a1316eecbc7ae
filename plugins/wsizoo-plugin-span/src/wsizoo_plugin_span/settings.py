"""What a SPAN network is made of: every option under one name, checked before anything is built."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

from wsizoo.errors import SpecError
from wsizoo.names import suggest
from wsizoo_plugin_span.options import (
    NORMED,
    READ_GLOBALS,
    SAME_GRID,
    STATISTICS,
    check_value,
    refuse,
    token_kind,
)
from wsizoo_plugin_span.pyramid import Plan, Step


@dataclass(frozen=True)
class Settings:
    """What encoder and decoder have in common; names in brackets are those of the published code.

    Args:
        in_dim: width of the features.
        layers: transformer layers a stage, one digit each: "111"; with a decoder "111-11".
            [slide_configs]
        dim: width E of the first stage; default half of the features'. [embed_dim_div]
        head_dim: width of an attention head; E // head_dim heads in the first stage.
        widening: factor of width and heads from stage to stage. [channel_factor]
        attention: "long": one softmax over regular and shifted window, and one over the global
            tokens; "long_noshift": the same without the shifted window; "swin": shifted and regular
            window apart, global tokens hear nothing; "tradswin": swin as two layers. [trans_type]
        half_window: half a window's side, in cells, at most 16. [window_size]
        positions: "rpb" a table of biases by offset, "alibi", "rope", "none". [pos_emb]
        table_std: of the tables' initialisation. [pos_std]
        share_qkv: one set of q, k, v for both attentions.
        ff_ratio, activation: of the feed-forward part. [ff_ratio, enc_act]
        attention_dropout, dropout, drop_path: training only. [attn_drop, proj_drop, drop_path]
        tokens: global tokens: "max", "mean", "std" of the features; a number v: drawn once with
            standard deviation v; "fix<v>": the same; "lrn<v>": trained. [token_init_types]
        global_path: how global tokens pass between stages: "proj" a linear map everywhere,
            "identity" one where widths differ, "kernel" the block's own weights. [global_strategy]
        down: block between stages. [econvs_type]
        kernel, stride, dilation, conv_groups, conv_bias: of those blocks, and of the decoder's.
        edge: what a convolution divides by where cells are missing: "none", "count" of present
            cells, "partial" their share of the weights. [edge_mode]
        edge_eps: least divisor of "partial".
        conv_norm: LayerNorm before ("pre") or after ("post") the block. [conv_norm_position]
        input_activation: None: the input projection is one linear map; else two, with it between.
        input_ratio: width of the hidden layer between, as a share of in_dim. [mlp_ratio]
        input_dropout, input_bias: of the input projection. [dropout, bias]
        input_norm: LayerNorm before it. [prenorm]
        input_dropout_first: dropout before the linear map instead of after. [drop_first]
        compat: None, or "published": every quirk of the published code.

    Raises:
        SpecError: an option that does not exist, or two that cannot work together.
    """

    whose: ClassVar[str] = "span"  # options, in errors

    in_dim: int
    layers: str = "111"
    dim: int | None = None
    head_dim: int = 64
    widening: int = 1
    attention: str = "long"
    half_window: int = 3
    positions: str = "rpb"
    table_std: float = 0.02
    share_qkv: bool = False
    ff_ratio: float = 2.0
    activation: str = "relu"
    attention_dropout: float = 0.05
    dropout: float = 0.0
    drop_path: float = 0.0
    tokens: tuple[str | float, ...] = ("lrn1e-4",)
    global_path: str = "identity"
    down: str = "dwpatchconv"
    kernel: int = 2
    stride: int = 2
    dilation: int = 1
    conv_groups: int = 1
    conv_bias: bool = False
    edge: str = "count"
    edge_eps: float = 1e-6
    conv_norm: str = "pre"
    input_activation: str | None = None
    input_ratio: float = 0.5
    input_dropout: float = 0.05
    input_bias: bool = False
    input_norm: bool = False
    input_dropout_first: bool = False
    compat: str | None = None

    @classmethod
    def of(cls, in_dim: int, options: Mapping[str, Any]) -> Self:
        """From a component's arguments. Raises SpecError for one that does not exist."""
        known = [f.name for f in dataclasses.fields(cls) if f.name != "in_dim"]
        for name in options:
            if name not in known:
                hint = suggest(name, known, "It takes: ")
                raise SpecError(f"{cls.whose} has no argument '{name}'. {hint}")
        given = dict(options)
        if "tokens" in given:
            tokens = given["tokens"]
            tokens = (tokens,) if isinstance(tokens, str | float | int) else tokens
            if not isinstance(tokens, list | tuple):
                refuse("tokens", tokens, "a list of global tokens, such as [max,lrn]", cls.whose)
            given["tokens"] = tuple(tokens)
        if "layers" in given:
            given["layers"] = str(given["layers"])
        return cls(in_dim=in_dim, **given)

    def __post_init__(self) -> None:
        if self.dim is None:
            object.__setattr__(self, "dim", self.in_dim // 2)
        self._check_values()
        self._check_widths()
        self._check_blocks()
        for token in self.tokens:
            token_kind(token, self.published, self.whose)

    def _refuse(self, name: str, expected: str) -> NoReturn:
        value = getattr(self, name)
        refuse(name, list(value) if name == "tokens" else value, expected, self.whose)

    def _check_values(self) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            check_value(name, getattr(self, name), self.whose)
        if self.ff_ratio * self.width(0) < 1 or self.input_ratio * self.in_dim < 1:
            ratios = self.ff_ratio, self.input_ratio
            refuse("ff_ratio or input_ratio", ratios, "wider layers", self.whose)
        if self.attention == "tradswin" and self.published:
            self._refuse("attention", "compat=null: the published code cannot build it")
        if not re.fullmatch(r"[0-9]+(-[0-9]+)?", self.layers):
            self._refuse("layers", 'a digit a stage, such as "111" or "111-11"')

    def _check_widths(self) -> None:
        width, heads = self.width(0), self.heads(self.width(0))
        if heads < 1:
            self._refuse("dim", f"at least head_dim ({self.head_dim}): this makes no head at all")
        if width % heads:
            self._refuse("dim", f"a multiple of its {heads} heads (dim // head_dim)")
        if self.positions == "rope" and width // heads < 4:
            self._refuse("head_dim", "at least 4 for positions=rope")

    def _check_blocks(self) -> None:
        if self.down == "identity" and self.widening != 1:
            self._refuse("widening", "1 where down=identity, which keeps the width")
        groups, steps = self.conv_groups, range(self.stages - 1)
        if self.down == "patchconv" and any(self.width(i) % groups for i in steps):
            self._refuse("conv_groups", f"a divisor of dim ({self.dim})")
        seen = {i * self.dilation % self.stride for i in range(self.kernel)}
        convolves = self.down not in SAME_GRID and not self.merges
        if len(seen) < self.stride and convolves and not self.published:
            shape = f"kernel ({self.kernel}) and dilation ({self.dilation})"
            self._refuse("stride", f"less for this {shape}: cells would be left out")

    @property
    def published(self) -> bool:
        return self.compat == "published"

    @property
    def encoder(self) -> tuple[int, ...]:
        """Transformer layers of each encoder stage."""
        return tuple(map(int, self.layers.partition("-")[0]))

    @property
    def decoder(self) -> tuple[int, ...]:
        """Transformer layers of each decoder stage, deepest first."""
        return tuple(map(int, self.layers.partition("-")[2]))

    @property
    def stages(self) -> int:
        return len(self.encoder)

    def width(self, stage: int) -> int:
        """Channels of an encoder stage."""
        assert self.dim is not None
        return int(self.dim * self.widening**stage)

    def heads(self, width: int) -> int:
        """Attention heads of a stage that is so wide."""
        first = self.width(0)
        return first // self.head_dim * (width // first) if first else 0

    @property
    def plan(self) -> Plan:
        """How the grids of the stages follow from the slide's."""
        step = Step(self.kernel, self.stride, self.dilation)
        down = None if self.down in SAME_GRID else Step(2, 2, 1) if self.merges else step
        if self.merges and not self.published:  # which makes room for a kernel it does not use
            step = Step(2, 2, 1)
        return Plan(step, (down,) * (self.stages - 1), self.half_window, self.published)

    @property
    def merges(self) -> bool:
        return self.down == "patchmerge"

    @property
    def token_kinds(self) -> list[str]:
        """Of each global token, see `token_kind`."""
        found = [token_kind(token, self.published) for token in self.tokens]
        return [kind for kind, _ in filter(None, found)]

    @property
    def n_tokens(self) -> int:
        return len(self.token_kinds)


@dataclass(frozen=True)
class SlideSettings(Settings):
    """A network whose tokens are pooled to one slide vector.

    Args:
        pooling: of each stage's first global token g_i and tokens F_i: "multi_addition" sum of all
            g_i; "concat" all g_i side by side; "mean" of all g_i; "last" g_L; "addition" maximum
            plus mean of F_L; "multiattn" attention pooling of each F_i, joined with g_i, weighted
            by learned stage weights. [aggr_method]
        pool_norm: LayerNorm on the pooled vector; default as in the published classification:
            all but mean and last. [head_norm]
        pool_dropout: on the slide vector. [cls_drop]
        pool_activation, pool_divisor: of multiattn's attention, hidden width E // pool_divisor.
            [head_act, head_div]
    """

    pooling: str = "multi_addition"
    pool_norm: bool | None = None
    pool_dropout: float = 0.05
    pool_activation: str = "relu"
    pool_divisor: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pool_norm is None:
            object.__setattr__(self, "pool_norm", self.pooling in NORMED)
        if self.decoder:
            self._refuse("layers", 'no decoder for a slide vector: "111" (or span-unet)')
        if self.pooling in READ_GLOBALS and self.n_tokens == 0:
            self._refuse("pooling", "addition or multiattn where there is no global token")
        uneven = self.pooling in ("multi_addition", "mean", "multiattn") and self.stages > 1
        if self.widening != 1 and (uneven or self.published):
            self._refuse("widening", f"1 for pooling={self.pooling}")
        if self.pooling == "multiattn" and self.pool_divisor > self.width(0):
            self._refuse("pool_divisor", f"at most dim ({self.dim})")
        self._check_hears()

    def _check_hears(self) -> None:
        """Raise SpecError where nothing that the pooling reads depends on the slide."""
        if self.pooling not in READ_GLOBALS or self.published:
            return
        deaf = self.attention in ("swin", "tradswin")
        if (deaf or not any(self.encoder)) and self.token_kinds[0] not in STATISTICS:
            why = f"attention={self.attention}" if deaf else f"layers={self.layers}"
            self._refuse(
                "tokens",
                f"max, mean or std as the first, which is read: with {why} global tokens hear "
                "nothing, so the slide vector would be the same for every slide",
            )

    @property
    def pooled_width(self) -> int:
        if self.pooling == "concat":
            return sum(self.width(stage) for stage in range(self.stages))
        return self.width(self.stages - 1)

    @property
    def reads_tokens(self) -> bool:
        """Whether the pooling reads the tokens of the last stage."""
        return self.pooling not in READ_GLOBALS


@dataclass(frozen=True)
class UNetSettings(Settings):
    """A network with a decoder back to one vector a patch.

    Args:
        up: block between the stages of the decoder. [dconvs_type]
        decoder_attention: as `attention`; default the same. [dtrans_type]
        skip: how the encoder's tokens of the same grid join: "concat", "add", "none". [connection]
        skip_after_layers: the skip follows a decoder stage's layers; else it comes before them,
            with a linear map back to the stage's width. [skip_first]
        head_dropout: on `instances`.
    """

    whose: ClassVar[str] = "span-unet"

    layers: str = "111-11"
    widening: int = 2
    tokens: tuple[str | float, ...] = ("max", "mean", "fix1e-4")
    global_path: str = "proj"
    down: str = "patchconv"
    edge: str = "none"
    conv_norm: str = "post"
    up: str = "pixelshuffle"
    decoder_attention: str | None = None
    skip: str = "concat"
    skip_after_layers: bool = True
    head_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.decoder_attention is None:
            object.__setattr__(self, "decoder_attention", self.attention)
        super().__post_init__()
        if len(self.decoder) != self.stages - 1 or not self.decoder:
            need = 'a decoder with one digit fewer than the encoder, such as "111-11"'
            self._refuse("layers", need)
        if self.down in SAME_GRID:
            self._refuse("down", "a block that coarsens the grid, for the decoder to undo")
        if self.published and self.kernel == 1:
            need = "2 or more, or compat=null: the published head leaves out a patch"
            self._refuse("kernel", need)
        if not self.mirrors and (self.up == "pixelshuffle" or not self.published):
            self._refuse("kernel", "kernel 2, stride 2, dilation 1 with down=patchmerge")
        if self.up == "pixelshuffle" and (self.kernel != self.stride or self.dilation != 1):
            self._refuse("kernel", f"stride ({self.stride}), dilation 1 for up=pixelshuffle")
        for before, after in self.decoder_widths:
            if self.up == "dwpatchinvs" and after % before:
                self._refuse("up", f"another: {before} channels do not divide {after}")
            if self.up == "patchinvs" and (before % self.conv_groups or after % self.conv_groups):
                self._refuse("conv_groups", f"a divisor of {before} and {after}")

    @property
    def mirrors(self) -> bool:
        """Whether the decoder's blocks have the kernels of the encoder's."""
        return not self.merges or (self.kernel, self.stride, self.dilation) == (2, 2, 1)

    @property
    def joins(self) -> int:
        """Factor of a stage's width after its skip, where nothing reduces it."""
        return 2 if self.skip == "concat" and self.skip_after_layers else 1

    @property
    def decoder_widths(self) -> list[tuple[int, int]]:
        """Channels that each decoder stage is given, and those of its layers."""
        widths = [self.width(stage) for stage in reversed(range(self.stages))]
        given = [widths[0], *(width * self.joins for width in widths[1:-1])]
        return list(zip(given, widths[1:], strict=True))

    @property
    def instance_width(self) -> int:
        return self.width(0) * self.joins
