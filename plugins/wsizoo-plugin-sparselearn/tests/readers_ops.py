"""Readers of the parity cases of soft and hard top-k; rows of padding are left out and put back."""

from __future__ import annotations

import torch

from wsizoo.ops import hard_topk, segment_mean, soft_topk

EPSILON = 1e-6  # of the variance that scores are divided by


def valid(inputs, like):
    """Which of the padded rows hold something, and where each bag of them begins and ends."""
    mask = inputs.get("mask", torch.ones(like.shape[:2], dtype=torch.bool))
    return mask, torch.tensor([0, *mask.sum(1).tolist()]).cumsum(0)


def padded(rows, mask):
    """Packed rows in their places, with 0 elsewhere."""
    return rows.new_zeros(*mask.shape, *rows.shape[1:]).index_put((mask,), rows)


def gates_of(case, inputs, scores):
    """Soft top-k of padded scores (B, N), packed, and the mask."""
    mask, offsets = valid(inputs, scores)
    packed, config = scores[mask], case.config
    if config["zscore"]:
        lengths = offsets.diff()
        packed = packed.double()
        packed = packed - segment_mean(packed, offsets).repeat_interleave(lengths)
        variance = segment_mean(packed**2, offsets).repeat_interleave(lengths)
        packed = packed / (variance + EPSILON).sqrt()
    k = inputs["k"] if "k" in inputs else config["k"]
    k = torch.tensor(k) if isinstance(k, list) else k
    temperature, form = config["temperature"], config["function"]
    return soft_topk(packed, k, temperature, offsets=offsets, form=form), mask


def read_soft(case):
    inputs = case.inputs()
    scores = inputs["scores"].requires_grad_()
    found, mask = gates_of(case, inputs, scores)
    gates = padded(found.gates, mask)
    (gates * inputs["cotangent"]).sum().backward()
    total, k = gates.detach().double().sum(1), torch.as_tensor(case.config["k"]).double()
    expected = torch.minimum(mask.sum(1).double(), k)
    assert bool(((total - expected).abs() <= case.meta["sum_tolerance"] * expected).all())
    return {"out.gates": gates, "grad.scores": scores.grad}


def read_path(case):
    inputs = case.inputs()
    scores = inputs["scores"].requires_grad_()
    found, mask = gates_of(case, inputs, scores)
    root, rest_root = padded(found.root, mask), padded(found.rest_root, mask)  # (B, N)
    y = root[..., None] * inputs["x"] + rest_root[..., None] * inputs["noise"]
    y = torch.where(mask[..., None], y, 0.0)
    (y * inputs["cotangent"]).sum().backward()
    return {"out.gates": padded(found.gates, mask), "out.y": y, "grad.scores": scores.grad}


def read_hard(case):
    inputs, k = case.inputs(), case.config["k"]
    mask, offsets = valid(inputs, inputs["scores"])
    rows = hard_topk(inputs["scores"][mask], k, offsets=offsets)
    slide, place = mask.nonzero()[rows].unbind(1)
    count = len(mask)
    return {
        "out.indices": place.reshape(count, -1),
        "out.tokens": inputs["x"][slide, place].reshape(count, -1, inputs["x"].shape[-1]),
    }


READERS = {"softtopk": read_soft, "gatepath": read_path, "infer": read_hard}
