"""Readers of the parity cases of whole networks: Pixel-Mamba, and the Vim its block is from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.serialise import serialise, with_cls
from wsizoo_plugin_pixelmamba.settings import Settings

from wsizoo.mamba import VimBlock

OURS = {"rf_split": "split", "rf_multi": "shared", "rf_count": "count"}  # theirs -> ours
SERIALISED = ("region", "pad_value", "classes")  # are told to `serialise`, and to the head


def read_net(case):
    config, weights = case.config, case.weights()
    options = {OURS.get(k, k): v for k, v in config.items() if k not in SERIALISED}
    network = Network(Settings.of(options))
    head = {k: weights.pop(k).requires_grad_() for k in ("head.weight", "head.bias")}
    assert len(head["head.bias"]) == config["classes"]
    network.load_state_dict(weights, strict=True)
    image, region = case.inputs()["image"].requires_grad_(), tuple(config["region"])
    given = serialise(
        image,
        network.cls_token,
        region,
        config["inner"],
        config["outer"],
        config["pad_value"],
    )
    steps = list(network.steps(given.tokens, region))
    features = network.read(steps[-1].tokens).mean(1)  # (1, E)
    logits = F.linear(features, head["head.weight"], head["head.bias"])
    leaves = {"image": image, **head, **dict(network.named_parameters())}
    found = {
        "out.logits": logits,
        "out.features": features,
        "out.regions_per_layer": torch.tensor([step.tokens.shape[1] for step in steps]),
        **{f"out.layer{i}.merged_into": step.fused[0].merged_into for i, step in enumerate(steps)},
        **{f"out.layer{i}.tokens": step.tokens for i, step in enumerate(steps)},
    }
    return found | slopes(case, logits, leaves)


class Vim(nn.Module):
    """Vision Mamba: patches, a class token in their middle, positions, residual blocks."""

    def __init__(self, config):
        super().__init__()
        dim, side = config["embed_dim"], config["img_size"] // config["patch_size"]
        self.patch_embed = nn.ModuleDict(
            {"proj": nn.Conv2d(3, dim, config["patch_size"], stride=config["stride"])}
        )
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, dim))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "mixer": VimBlock(dim, config["d_state"], divide_out=config["if_divide_out"]),
                    "norm": nn.RMSNorm(dim, eps=config["norm_epsilon"]),
                }
            )
            for _ in range(config["depth"])
        )
        self.norm_f = nn.RMSNorm(dim, eps=config["norm_epsilon"])
        self.head = nn.Linear(dim, config["num_classes"])

    def forward(self, x):
        patches = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)  # (B, M, C)
        middle = patches.shape[1] // 2
        tokens = with_cls(patches, self.cls_token) + self.pos_embed
        b, length, _ = tokens.shape
        offsets = torch.arange(b + 1) * length
        r = tokens.flatten(0, 1)
        for layer in self.layers:
            r = r + layer["mixer"](layer["norm"](r), offsets)
        features = self.norm_f(r).view(b, length, -1)[:, middle]
        return features, self.head(features)


def read_vim(case):
    assert case.config["if_cls_token"] and case.config["use_middle_cls_token"]
    assert case.config["bimamba_type"] == "v2" and case.config["rms_norm"]
    vim = Vim(case.config)
    vim.load_state_dict(case.weights(), strict=True)
    x = case.inputs()["x"].requires_grad_()
    features, logits = vim(x)
    leaves = {"x": x, **dict(vim.named_parameters())}
    return {"out.features": features, "out.logits": logits} | slopes(case, logits, leaves)


def slopes(case, output, leaves):
    """`grad.*` that the case names."""
    names = [name for name in case.tolerance if name.startswith("grad.")]
    wanted = [leaves[name.removeprefix("grad.")] for name in names]
    found = torch.autograd.grad(output, wanted, case.inputs()["cotangent"])
    return dict(zip(names, found, strict=True))


READERS = {"pm_net": read_net, "vim": read_vim}
