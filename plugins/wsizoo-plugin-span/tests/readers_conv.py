"""Our sparse convolutions on the inputs of the published ones."""

import math
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from wsizoo.ops import (
    children,
    pixel_shuffle_linear,
    rulebook,
    sparse_conv2d,
    sparse_conv_transpose2d,
    transpose_rulebook,
)
from wsizoo.testing import Case


def read_conv(case: Case) -> Mapping[str, Tensor]:
    found = {}
    for sub in case.meta["subcases"]:
        given, kernel = inputs_of(case, sub["id"]), kernel_of(sub)
        book = rulebook(given["pos"].long(), sub["spatial_shape"], *kernel)
        assert list(book.out_shape) == sub["out_spatial_shape"]
        found[f"out.{sub['id']}.pos"] = book.out_cells
        found[f"out.{sub['id']}.feats"] = sparse_conv2d(
            given["feats"],
            given["weight"],
            book,
            given.get("bias"),
            edge=sub["edge_mode"],
            edge_eps=sub["edge_eps"],
        )
    return found


def read_conv_transpose(case: Case) -> Mapping[str, Tensor]:
    found = {}
    for sub in case.meta["subcases"]:
        given, kernel = inputs_of(case, sub["id"]), kernel_of(sub)
        book = transpose_rulebook(given["pos"].long(), given["target_pos"].long(), *kernel)
        found[f"out.{sub['id']}.feats"] = sparse_conv_transpose2d(
            given["feats"], given["weight"], book, given.get("bias"), sub["groups"]
        )
    return found


def read_pixel_shuffle(case: Case) -> Mapping[str, Tensor]:
    given, weights = case.inputs(), case.weights()
    weight, bias = weights["conv_block.conv.weight"], weights["conv_block.conv.bias"]
    parts = len(weight) // len(weights["conv_block.output_norm.weight"])
    stride = math.isqrt(parts)
    fine = children(given["pos"].long(), stride)
    book = transpose_rulebook(given["pos"].long(), fine, stride, stride)
    x = pixel_shuffle_linear(given["feats"], weight, book, bias)
    scale, shift = weights["conv_block.output_norm.weight"], weights["conv_block.output_norm.bias"]
    return {"out.pos": fine, "out.feats": F.layer_norm(x, x.shape[1:], scale, shift)}


def inputs_of(case: Case, number: int) -> dict[str, Tensor]:
    start = f"{number}."
    return {k.removeprefix(start): v for k, v in case.inputs().items() if k.startswith(start)}


def kernel_of(sub: Mapping[str, Any]) -> tuple[int, int, int]:
    return sub["kernel_size"], sub["stride"], sub["dilation"]


READERS = {
    "op_sparse_conv2d": read_conv,
    "op_sparse_conv_transpose2d": read_conv_transpose,
    "op_pixelshuffle_free": read_pixel_shuffle,
}
