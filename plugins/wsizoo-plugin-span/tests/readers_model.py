"""Readers of the parity cases of SPAN's networks: what they give, their gradients, training.

A reader builds what a case's meta describes, gives it the case's weights through the official
reader, and returns the numbers under the case's names.
"""

from __future__ import annotations

import runpy
from pathlib import Path

import torch
from wsizoo_plugin_span.model import Span, SpanUNet
from wsizoo_plugin_span.official import from_official, to_official
from wsizoo_plugin_span.pyramid import build

from wsizoo.mil.heads import ClassificationHead, SegmentationHead, SurvivalHead

official_settings = runpy.run_path(str(Path(__file__).with_name("official_config.py")))[
    "official_settings"
]
OWN = "aggregator."


class Network:
    """The network of a case with its weights, and a linear head as the published one's."""

    def __init__(self, case):
        meta = case.meta
        self.task = meta.get("task") or meta["trained_task"]
        self.settings = official_settings(
            meta["in_channels"],
            meta["model_config"],
            self.task,
            meta["task_config"].get(self.task),
            meta.get("head_dim") or 64,
        )
        tensors, self.unused = from_official(case.weights(), self.task, self.settings)
        self.head = torch.nn.Linear(1, 1)
        for name in ("weight", "bias"):
            value = tensors.pop(f"head.linear.{name}")
            setattr(self.head, name, torch.nn.Parameter(value))
        kind = SpanUNet if self.task == "segmentation" else Span
        options = {k: v for k, v in vars(self.settings).items() if k != "in_dim"}
        self.aggregator = kind(meta["in_channels"], **options)
        own = {name.removeprefix(OWN): tensor for name, tensor in tensors.items()}
        self.aggregator.load_state_dict(own, strict=True)
        self.eval()

    def eval(self):
        self.aggregator.eval()
        self.head.eval()

    def train(self):
        self.aggregator.train()
        self.head.train()

    def named_parameters(self):
        for name, parameter in self.aggregator.named_parameters(remove_duplicate=False):
            yield f"aggregator.{name}", parameter
        for name, parameter in self.head.named_parameters():
            yield f"head.linear.{name}", parameter

    def parameters(self):
        return {id(p): p for _, p in self.named_parameters()}.values()

    def __call__(self, features, pos):
        """Stages of the encoder, those of the decoder, logits."""
        pyramid = build([pos.long()], self.settings.plan)
        aggregator = self.aggregator
        if self.task == "segmentation":
            stages = aggregator.encoder(features, pyramid)
            decoded = aggregator.decoder(stages, pyramid)
            return stages, decoded, pyramid.patches(self.head(decoded[-1].tokens))
        stages = aggregator.encoder(features, pyramid, need_tokens=True)
        return stages, [], self.head(aggregator.pooling(stages))

    def gradients(self):
        """By the published names; one without a gradient is left out."""
        ours = {n: p.grad for n, p in self.named_parameters() if p.grad is not None}
        for name, parameter in self.named_parameters():
            ours.setdefault(name, torch.full_like(parameter, torch.nan))
        for name, buffer in self.aggregator.named_buffers():
            ours[f"aggregator.{name}"] = torch.full_like(buffer, torch.nan)
        return to_official(ours, self.task, self.settings)


def read_network(case):
    network, inputs = Network(case), case.inputs()
    if str(case.meta["model_config"].get("dconvs_type")).startswith("d_"):
        cells = inputs["pos"].tolist()
        assert cells == sorted(cells), (
            "a dense decoder answers in raster order, ours in the input's"
        )
    features = inputs["feats"].requires_grad_("cotangent" in inputs)
    stages, decoded, logits = network(features, inputs["pos"])
    found = {"out.logits": logits, "out.padded_pos": stages[0].level.cells}
    for i, stage in enumerate(stages):
        found[f"out.coords_{i}"] = stage.level.cells
        found[f"out.feats_{i}"] = stage.tokens
        found[f"out.globals_{i}"] = stage.globals_[0]
    for i, stage in enumerate(decoded):
        found[f"out.dec_coords_{i}"] = stage.level.cells
        found[f"out.dec_feats_{i}"] = stage.tokens
    if decoded:  # the published decoder counts the head as its last stage
        found[f"out.dec_coords_{len(decoded)}"] = decoded[-1].level.cells
        found[f"out.dec_feats_{len(decoded)}"] = network.head(decoded[-1].tokens)
    if network.task == "survival":
        fields = SurvivalHead(1, logits.shape[1]).outputs(logits)
        found["out.hazards"], found["out.risk"] = fields["hazards"], fields["risk"]
        found["out.S"] = torch.cumprod(1 - fields["hazards"], -1)
        found["out.Y_hat"] = logits.argmax(-1, keepdim=True)
    if "cotangent" in inputs:
        (found[f"out.{case.meta['cotangent_for']}"] * inputs["cotangent"]).sum().backward()
        found["grad.feats"] = features.grad
        found.update({f"grad.{name}": grad for name, grad in network.gradients().items()})
    return found


def read_training(case):
    network, inputs, meta = Network(case), case.inputs(), case.meta
    network.train()
    steps = case.outputs()["out.losses"].shape[0]
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=meta["lr"], weight_decay=meta["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses, rates = [], []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = _loss(network, network(inputs["feats"], inputs["pos"])[-1], inputs, meta)
        loss.backward()
        rates.append(optimizer.param_groups[0]["lr"])
        losses.append(loss.detach())
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        after = network(inputs["feats"], inputs["pos"])[-1]
    return {
        "out.losses": torch.stack(losses),
        "out.learning_rates": torch.tensor(rates),
        "out.logits_after": after,
    }


def _loss(network, logits, inputs, meta):
    """The task's loss, by the core's heads."""
    if network.task == "classification":
        head = ClassificationHead(None, [f"class {i}" for i in range(logits.shape[1])])
        return head.loss(logits, {"label": inputs["label"].argmax(1)})
    if network.task == "survival":
        options = meta["task_config"]["survival"]
        head = SurvivalHead(None, logits.shape[1], alpha=options["alpha"], floor=1e-7)
        event = 1 - inputs["censorship"].long()
        return head.loss(logits, {"time": inputs["survival_label"], "event": event})
    head = SegmentationHead(
        None,
        ["negative", "positive"],
        one_logit=True,
        threshold=meta["threshold"],
        dice_weight=meta["dice_weight"],
        pos_weight=meta["pos_weight"],
    )
    return head.loss(logits, {"instances": inputs["ratios"]})


READERS = {
    "model.classification": read_network,
    "model.survival": read_network,
    "model.segmentation": read_network,
    "train.classification": read_training,
    "train.survival": read_training,
    "train.segmentation": read_training,
}
