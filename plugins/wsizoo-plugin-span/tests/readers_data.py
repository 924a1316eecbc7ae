"""Parity readers of SPAN's augmentation, losses, measures, survival targets, files and splits."""

import re
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

import wsizoo
from wsizoo.augment import CoordinateAugmentation, augment_cells, snap
from wsizoo.formats.span import published_cells
from wsizoo.losses import (
    bce_dice,
    binary_cross_entropy,
    cross_entropy,
    discrete_time_nll,
    inverse_frequencies,
    positive_weight,
    soft_dice,
)
from wsizoo.measures.metrics import accuracy, concordance_index, macro, one_vs_rest_auc, overlap
from wsizoo.measures.times import whole_cohort_targets
from wsizoo.mil.heads import SurvivalHead
from wsizoo.splits.parts import (
    SPAN_FRACTIONS,
    Split,
    permuted_split,
    span_camelyon16_segmentation_split,
    span_tcga_lung_split,
)
from wsizoo.testing.parity_runner import Case

FLOOR = 1e-7
OFF = {"mirror": 0.0, "shear": 0.0, "rotate": 0.0}
FRACTIONS = {
    "70_15_15": SPAN_FRACTIONS["classification"],
    "70_10_20": SPAN_FRACTIONS["bach"],
    "c17": SPAN_FRACTIONS["camelyon17"],
}


def read_coord_aug(case: Case) -> dict[str, Tensor]:
    given, found = case.inputs(), {}
    for name in given:
        which, _, kind = name.partition(".")
        if kind == "pos":
            moved = augment_cells(given[name].long(), given[f"{which}.matrix"])
            found[f"out.{which}.pos"] = moved
        elif kind == "coords":
            found[f"out.{which}.pos"] = snap(given[name])
    return found


def read_aug_random(case: Case) -> dict[str, Tensor]:
    kinds = {
        "mirror_p0.75": (CoordinateAugmentation(**{**OFF, "mirror": 0.75}), 0.0),
        "mirror_p0.75_x0.2": (CoordinateAugmentation(**{**OFF, "mirror": 0.75}), 1.0),
        "shear10_p0.75": (CoordinateAugmentation(**{**OFF, "shear": 0.75}), 0.0),
        "rotate30_p0.75": (CoordinateAugmentation(**{**OFF, "rotate": 0.75}), 0.0),
        "rotate_fixed_p1": (CoordinateAugmentation(**{**OFF, "rotate": 1}, quarter_turns=True), 0),
        "chain": (CoordinateAugmentation(), 0.0),
    }
    found = {}
    for name, (augmentation, progress) in kinds.items():
        generators = [torch.Generator().manual_seed(9000 + s) for s in range(40)]
        matrices = [augmentation.matrix(generator, progress) for generator in generators]
        found[f"out.{name}"] = torch.stack(matrices)
    for name, decay in (("cls", "cosine"), ("seg", "cosine"), ("linear", "linear")):
        epochs = len(case.outputs()[f"out.multiplier_{name}"])
        factors = [CoordinateAugmentation(decay=decay).factor(e / epochs) for e in range(epochs)]
        found[f"out.multiplier_{name}"] = torch.tensor(factors)
    return found


def read_losses(case: Case) -> dict[str, Tensor]:
    given, found = case.inputs(), {}
    for sub in case.meta["subcases"]:
        name = sub["id"]
        if name.startswith("seg"):
            weights = sub["pos_weight"], sub["dice_weight"]
            found |= _patch_losses(name, given[f"{name}.logits"], given[f"{name}.labels"], *weights)
        elif name.startswith("surv"):
            own = (given[f"{name}.{part}"] for part in ("logits", "Y", "c"))
            found |= _survival_losses(name, *own, sub["alpha"])
    logits, label = given["ce.logits"], given["ce.labels"]
    weights = inverse_frequencies(label, logits.shape[1])
    each = [cross_entropy(logits[i : i + 1], label[i : i + 1], weights) for i in range(len(label))]
    shares = torch.cat([given[f"pw.ratios{i}"] for i in range(4)])
    found["out.ce.class_weights"], found["out.ce.loss_each"] = weights, torch.stack(each)
    found["out.pw.pos_weight"] = torch.tensor([positive_weight(shares >= 0.2)])
    return found


def _patch_losses(
    name: str, logits: Tensor, labels: Tensor, pos_weight: float, dice_weight: float
) -> dict[str, Tensor]:
    logits.requires_grad_()
    raw, label = logits[:, 0], labels[:, 0]
    loss = bce_dice(raw, label, pos_weight, dice_weight)
    (grad,) = torch.autograd.grad(loss, logits)
    ce, dice = binary_cross_entropy(raw, label, pos_weight), soft_dice(raw, label)
    values = {"ce": ce, "dice": dice, "loss": loss}
    named = {f"out.{name}.{key}": value.reshape(1) for key, value in values.items()}
    return {**named, f"grad.{name}.logits": grad}


def _survival_losses(
    name: str, logits: Tensor, time_bin: Tensor, censored: Tensor, alpha: float
) -> dict[str, Tensor]:
    logits.requires_grad_()
    head = SurvivalHead(None, bins=logits.shape[1], alpha=alpha, floor=FLOOR)
    targets = {"time": time_bin[:, 0], "event": 1 - censored[:, 0]}
    loss = head.loss(logits, targets)
    (grad,) = torch.autograd.grad(loss, logits)
    event = targets["event"].bool()
    each = [
        discrete_time_nll(logits[i : i + 1], time_bin[i], event[i : i + 1], alpha, FLOOR)
        for i in range(len(logits))
    ]
    outputs = head.outputs(logits)
    return {
        f"out.{name}.hazards": outputs["hazards"],
        f"out.{name}.S": torch.cumprod(1 - outputs["hazards"], 1),
        f"out.{name}.risk": outputs["risk"],
        f"out.{name}.loss": loss.reshape(1),
        f"out.{name}.loss_each": torch.stack(each),
        f"grad.{name}.logits": grad,
    }


def read_metrics(case: Case) -> dict[str, Tensor]:
    given, found = case.inputs(), {}
    for sub in case.meta["subcases"]:
        name = sub["id"]
        if name.startswith("cls"):
            own = given[f"{name}.logits"], given[f"{name}.labels"]
            aucs, summary = _classification(*own, torch.tensor(sub["class_weights"]))
            found[f"out.{name}.aucs"], found[f"out.{name}.summary"] = aucs, summary
        elif name.startswith("surv"):
            times, censored, risk = (given[f"{name}.{key}"] for key in ("time", "censored", "risk"))
            value = concordance_index(times.numpy(), 1 - censored.numpy(), risk.numpy())
            found[f"out.{name}.c_index"] = torch.tensor([value])
        else:
            slides = [(given[f"seg.logits{i}"][:, 0], given[f"seg.ratios{i}"]) for i in range(3)]
            found["out.seg.summary"] = _segmentation(slides, sub["threshold"], sub["pos_weight"])
    return found


def _classification(logits: Tensor, label: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    each = [cross_entropy(logits[i : i + 1], label[i : i + 1], weights) for i in range(len(label))]
    labels, predicted = label.numpy(), logits.argmax(1).numpy()
    aucs = one_vs_rest_auc(labels, logits.softmax(1).numpy())
    means = macro(labels, predicted)
    loss = float(torch.stack(each).mean())
    summary = [loss, accuracy(labels, predicted), float(np.nanmean(aucs))]
    summary += [means.f1, means.precision, means.recall]
    return torch.tensor(aucs), torch.tensor(summary)


def _segmentation(
    slides: list[tuple[Tensor, Tensor]], threshold: float, pos_weight: float
) -> Tensor:
    pairs = [(logits, (ratios >= threshold).long()) for logits, ratios in slides]
    ce = torch.stack([binary_cross_entropy(*pair, pos_weight) for pair in pairs]).mean()
    dice = torch.stack([soft_dice(*pair) for pair in pairs]).mean()
    labels = torch.cat([label for _, label in pairs]).numpy()
    predicted = torch.cat([logits.sigmoid() >= threshold for logits, _ in pairs]).numpy()
    found = overlap(labels, predicted)
    summary = [float(ce), float(dice), found.dice, found.iou, found.recall, found.precision]
    return torch.tensor(summary)


def read_clinical(case: Case) -> dict[str, Tensor]:
    given, found = {name: value.numpy() for name, value in case.inputs().items()}, {}
    for bins in (4, 5):
        targets = whole_cohort_targets(
            given["months"], given["deceased"], given["patient"].tolist(), bins
        )
        columns = {
            "kept_rows": torch.tensor(targets.rows),
            "label": torch.tensor(targets.bins)[:, None],
            "censorship": torch.tensor(~targets.events).float()[:, None],
            "time": torch.tensor(targets.times),
        }
        found |= {f"out.g{bins}.{name}": value for name, value in columns.items()}
    return found


def read_data(case: Case) -> dict[str, Tensor]:
    """Splits; and slides, through a file in SPAN's layout, in the raster order of its loader."""
    given, found = case.inputs(), {}
    for name in case.tolerance:
        if match := re.fullmatch(r"out\.(split_)?(\w+)_n(\d+)_seed(\d+)", name):
            _, rule, n, seed = match.groups()
            found[name] = _split(rule, int(n), int(seed))
    for which in {name.partition(".")[0] for name in given}:
        own = {key: given[f"{which}.{key}"] for key in ("feats", "cords", "label", "ratios")}
        cells = published_cells(own["cords"])
        order = torch.argsort(cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1], stable=True)
        found[f"out.{which}.pos"] = cells[order]
        bag = _through_a_file(own)
        assert bag.target is not None
        positive = torch.tensor([int(bag.target["label"] > 0)])
        found[f"out.{which}.label"] = torch.nn.functional.one_hot(positive, 2).float()
        found[f"out.{which}.feats"] = bag.features[order]
        found[f"out.{which}.ratios"] = bag.target["instances"][order]
    return found


def _through_a_file(own: dict[str, Tensor]) -> wsizoo.Bag:
    """Patches of files off the grid that share a cell are parted, which SPAN's loader does not."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.h5"
        with h5py.File(path, "w") as file:
            for name, value in own.items():
                file[name] = value.numpy()
        return wsizoo.read_bag(path, encoder="uni", collisions="nearest")


def _split(rule: str, n: int, seed: int) -> Tensor:
    """Counts of the parts, then the slides of each, as the case has them."""
    if rule == "c16seg":
        split = span_camelyon16_segmentation_split(n, seed)
        return torch.tensor([len(split.train), *split.train, *split.val])
    split = span_tcga_lung_split(n, seed) if rule == "tcga" else None
    split = split or permuted_split(n, FRACTIONS[rule], seed)
    return torch.tensor([*_counts(split), *split.train, *split.val, *split.test])


def _counts(split: Split) -> list[int]:
    return [len(split.train), len(split.val), len(split.test)]


READERS = {
    "op_coord_aug": read_coord_aug,
    "op_aug_random": read_aug_random,
    "op_losses": read_losses,
    "op_metrics": read_metrics,
    "op_clinical": read_clinical,
    "op_data": read_data,
}
