"""Options of SPAN: what is refused before anything is built, and the published names of all."""

import runpy
from pathlib import Path

import pytest
import torch
from wsizoo_plugin_span.options import token_kind
from wsizoo_plugin_span.pyramid import build
from wsizoo_plugin_span.settings import SlideSettings, UNetSettings

from wsizoo.errors import SpecError

official_settings = runpy.run_path(str(Path(__file__).with_name("official_config.py")))[
    "official_settings"
]
SLIDE = [
    ({"attention": "swin_global"}, r"attention is 'swin_global', expected one of long, long_no"),
    ({"attention": "tradswin", "compat": "published"}, r"expected compat=null: the published"),
    ({"positions": "sin"}, r"positions is 'sin', expected one of rpb, alibi, rope, none"),
    ({"activation": "mish"}, r"activation is 'mish', expected one of relu, gelu"),
    ({"compat": "paper"}, r"compat is 'paper', expected one of None, published"),
    ({"layers": "1a1"}, r"layers is '1a1', expected a digit a stage, such as \"111\""),
    ({"layers": "111-11"}, r"expected no decoder for a slide vector: \"111\" \(or span-unet\)"),
    ({"half_window": 0}, r"half_window is 0, expected a whole number from 1 to 16: memory grows"),
    ({"half_window": 17}, r"half_window is 17, expected a whole number from 1 to 16"),
    ({"kernel": 2.5}, r"kernel is 2.5, expected a whole number from 1"),
    ({"dropout": 1.0}, r"dropout is 1.0, expected a share from 0 to below 1"),
    ({"attention_dropout": "no"}, r"attention_dropout is 'no', expected a share from 0"),
    ({"table_std": -1}, r"table_std is -1, expected a number above 0"),
    ({"table_std": 0}, r"table_std is 0, expected a number above 0"),
    ({"edge_eps": -1}, r"edge_eps is -1, expected a number from 0"),
    ({"share_qkv": "maybe"}, r"span's share_qkv is 'maybe', expected true or false"),
    ({"input_bias": 1}, r"input_bias is 1, expected true or false"),
    ({"pool_norm": 3}, r"pool_norm is 3, expected true, false or null"),
    ({"pool_divisor": 10_000, "pooling": "multiattn"}, r"pool_divisor is 10000, expected at most"),
    ({"ff_ratio": 0.001}, r"ff_ratio or input_ratio is \(0.001, 0.5\), expected wider layers"),
    ({"dim": 32}, r"dim is 32, expected at least head_dim \(64\): this makes no head at all"),
    ({"dim": 130}, None),
    ({"dim": 193}, r"dim is 193, expected a multiple of its 3 heads \(dim // head_dim\)"),
    ({"head_dim": 2, "positions": "rope"}, r"head_dim is 2, expected at least 4 for positions=r"),
    ({"down": "identity", "widening": 2}, r"widening is 2, expected 1 where down=identity"),
    ({"down": "patchconv", "conv_groups": 3}, r"conv_groups is 3, expected a divisor of dim"),
    ({"stride": 3}, r"stride is 3, expected less for this kernel \(2\) and dilation \(1\)"),
    (
        {"dilation": 2},
        r"stride is 2, expected less for this kernel \(2\) and dilation \(2\): cells",
    ),
    ({"dilation": 2, "stride": 1}, None),
    ({"down": "patchmerge", "stride": 3}, None),
    ({"dilation": 2, "kernel": 3, "stride": 3}, None),
    ({"stride": 3, "compat": "published"}, None),
    ({"tokens": None}, r"tokens is None, expected a list of global tokens, such as \[max,lrn\]"),
    ({"tokens": ["cls"]}, r"tokens is 'cls', expected max, mean, std, a number, fix<number> or"),
    ({"tokens": ["cls", "mean"], "compat": "published"}, None),
    ({"tokens": []}, r"pooling is 'multi_addition', expected addition or multiattn where there"),
    ({"tokens": [], "pooling": "addition"}, None),
    ({"widening": 2}, r"widening is 2, expected 1 for pooling=multi_addition"),
    ({"widening": 2, "pooling": "last"}, None),
    ({"widening": 2, "pooling": "last", "compat": "published"}, r"expected 1 for pooling=last"),
    ({"attention": "swin"}, r"tokens is \['lrn1e-4'\], expected max, mean or std as the fi"),
    ({"attention": "swin", "tokens": ["mean", "lrn"]}, None),
    ({"attention": "swin", "tokens": ["lrn", "mean"]}, r"as the first, which is read: with atten"),
    (
        {"layers": "000"},
        r"with layers=000 global tokens hear nothing, so the slide vector would be",
    ),
    ({"layers": "0", "pooling": "last"}, r"with layers=0 global tokens hear nothing"),
    ({"layers": "0", "pooling": "addition"}, None),
    ({"layers": "0", "tokens": ["max"]}, None),
    ({"layers": "100", "pooling": "last"}, None),
    ({"layers": "0", "compat": "published"}, None),
    ({"attention": "swin", "compat": "published"}, None),
    ({"pooling": "max"}, r"pooling is 'max', expected one of multi_addition, concat"),
    ({"windows": 3}, r"span has no argument 'windows'. Did you mean 'half_window'\?|It takes: "),
]
UNET = [
    ({"layers": "111-1"}, r"expected a decoder with one digit fewer than the encoder, such as"),
    ({"layers": "111"}, r"layers is '111', expected a decoder with one digit fewer"),
    ({"layers": "1"}, r"layers is '1', expected a decoder with one digit fewer"),
    ({"down": "linear", "widening": 1}, r"down is 'linear', expected a block that coarsens the"),
    ({"down": "patchmerge", "kernel": 3, "stride": 3}, r"expected kernel 2, stride 2, dilation 1"),
    ({"down": "patchmerge", "kernel": 3, "up": "patchinvs"}, r"expected kernel 2, stride 2, dila"),
    ({"down": "patchmerge", "kernel": 3, "up": "patchinvs", "compat": "published"}, None),
    (
        {"down": "patchmerge", "kernel": 3, "stride": 3, "compat": "published"},
        r"expected kernel 2, stride 2, dilation 1 with down=patchmerge",
    ),
    (
        {"kernel": 1, "stride": 1, "compat": "published"},
        r"kernel is 1, expected 2 or more, or compat=null: the published head leaves out a patch",
    ),
    ({"kernel": 1, "stride": 1}, None),
    ({"skip_after_layers": 2}, r"span-unet's skip_after_layers is 2, expected true or false"),
    ({"kernel": 3}, r"kernel is 3, expected stride \(2\), dilation 1 for up=pixelshuffle"),
    ({"kernel": 3, "up": "patchinvs"}, None),
    ({"up": "dwpatchinvs"}, r"up is 'dwpatchinvs', expected another: 2048 channels do not divide"),
    ({"up": "dwpatchinvs", "widening": 1, "skip": "add"}, None),
    ({"up": "patchinvs", "conv_groups": 3, "dim": 192, "widening": 1, "skip": "add"}, None),
    ({"up": "patchinvs", "conv_groups": 5, "down": "dwpatchconv"}, r"conv_groups is 5, expected"),
    ({"decoder_attention": "big"}, r"decoder_attention is 'big', expected one of long"),
    ({"pooling": "last"}, r"span-unet has no argument 'pooling'"),
]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [*((SlideSettings, *each) for each in SLIDE), *((UNetSettings, *each) for each in UNET)],
    ids=str,
)
def test_options_that_cannot_work_are_refused_with_what_could(kind, options, message):
    if message is None:
        kind.of(1024, options)
        return
    with pytest.raises(SpecError, match=message):
        kind.of(1024, options)


def test_tokens_are_read_as_the_published_code_reads_them():
    kinds = {
        "MAX": ("max", 0.0),
        "std": ("std", 0.0),
        "0.5": ("random", 0.5),
        "fix1e-3": ("fixed", 1e-3),
        "fix:2": ("fixed", 2.0),
        "lrn_0.1": ("learnable", 0.1),
        "lrn": ("learnable", 1e-4),
    }
    assert {token: token_kind(token) for token in kinds} == kinds
    for text in ("lrn-x", ":0.1", "_0.1", "mean\n", "a\nb"):
        assert token_kind(text, lenient=True) == (("mean", 0.0) if "mean" in text else None)
    assert token_kind(0.01) == ("random", 0.01)


def test_the_defaults_are_the_published_configurations():
    published = {"slide_configs": "111", "econvs_type": "dwpatchconv", "edge_mode": "count"}
    published |= {"conv_norm_position": "pre", "token_init_types": ["lrn1e-4"]}
    published |= {"global_strategy": "identity", "ff_ratio": 2, "attn_drop": 0.05}
    found = official_settings(1024, published, "classification", {"aggr_method": "multi_addition"})
    assert found == SlideSettings(1024, compat="published", ff_ratio=2)
    assert (found.width(2), found.heads(512), found.pooled_width) == (512, 8, 512)
    unet = UNetSettings(1024)
    assert unet.decoder_widths == [(2048, 1024), (2048, 512)]
    assert [unet.heads(width) for width in (512, 1024, 2048)] == [8, 16, 32]


@pytest.mark.parametrize(
    "options",
    [
        {"kernel": 3, "stride": 3, "dilation": 2},
        {"kernel": 4, "stride": 2, "dilation": 3},
        {"down": "patchmerge", "kernel": 1, "stride": 1},
        {"down": "patchmerge", "kernel": 2, "stride": 1},
        {"down": "patchmerge", "kernel": 3, "stride": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("layers", ["11", "111", "1111"])
def test_every_patch_reaches_the_last_stage(options, layers):
    plan, last = SlideSettings.of(1024, {**options, "layers": layers}).plan, len(layers) - 1
    for size in (*range(1, 20), 37):
        pyramid = build([torch.cartesian_prod(torch.arange(size), torch.arange(2))], plan)
        assert (pyramid.to_patches({last: torch.ones(len(pyramid.levels[last]))}) > 0).all()


@pytest.mark.parametrize("task", ["classification", "survival", "segmentation"])
def test_dense_blocks_are_the_sparse_ones_without_edges(task):
    layers = "111-11" if task == "segmentation" else "111"
    model = {"slide_configs": layers, "econvs_type": "d_patchconv", "edge_mode": "count"}
    model |= {"dconvs_type": "d_pixelshuffle"}
    found = official_settings(1024, model, task)
    assert (found.down, found.edge) == ("patchconv", "none")


def test_none_may_be_written_as_null():
    found = official_settings(1024, {"pos_emb": None, "edge_mode": None}, "classification")
    assert (found.positions, found.edge) == ("none", "none")


def test_configurations_that_the_published_code_does_not_read_are_refused():
    with pytest.raises(SpecError, match=r"SPAN has no task 'regression', expected one of class"):
        official_settings(1024, {}, "regression")
    with pytest.raises(SpecError, match=r"the published SPAN reads no model\.depth; it reads"):
        official_settings(1024, {"depth": 3}, "survival")
    with pytest.raises(SpecError, match=r"reads no model\.input_projection\.width"):
        official_settings(1024, {"input_projection": {"width": 3}}, "survival")
