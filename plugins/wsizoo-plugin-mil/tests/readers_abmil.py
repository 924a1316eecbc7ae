"""MIL-Lab's ABMIL, and FEATHER's files as they lie on the Hub."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab

from wsizoo.weights import read_tensors

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))


def read_abmil(case):
    return read(case, case.config, case.weights())


def read_feather(case):
    """Built from the config.json that lies beside the weights, and nothing else."""
    config = json.loads((case.path / "config.json").read_text())
    assert config["model_type"] == "abmil"
    return read(case, config, read_tensors(case.path / "model.safetensors")[0])


def read(case, config, tensors):
    further = [config["embed_dim"]] * (config["num_fc_layers"] - 1)
    model = R.model_of(
        case,
        MILLab(),
        "abmil-feather-uni",
        f"encoder.dim={config['in_dim']}",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.attention={config['attn_dim']}",
        f"aggregator.gated={str(config['gate']).lower()}",
        f"aggregator.hidden={further}",
        *(["head=classification"] if config["num_classes"] else []),
        classes=config["num_classes"],
        tensors=tensors,
    )
    given = case.inputs()
    x = given["x"].requires_grad_()
    found = {**outputs(model, list(x)), "out.attention_raw": raw(model, x)}
    if "attn_mask" in given:
        mask = given["attn_mask"].bool()
        kept = outputs(model, [row[keep] for row, keep in zip(x, mask, strict=True)], mask)
        found |= {f"out.masked_{name.removeprefix('out.')}": value for name, value in kept.items()}
    if "out.logits" in found:
        found["out.loss"] = F.cross_entropy(found["out.logits"], given["label"])
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


def outputs(model, rows, mask=None):
    made = [model(R.slide(row)) for row in rows]
    scores = [output.scores for output in made]
    weights = torch.stack(scores) if mask is None else spread(scores, mask)
    found = {"out.slide_feats": torch.stack([output.embedding for output in made])}
    found["out.attention"] = weights[:, None]  # (B, 1, N)
    if made[0].logits is not None:
        found["out.logits"] = torch.stack([output.logits for output in made])
    return found


def spread(scores, mask):
    weights = torch.zeros(mask.shape)
    weights[mask] = torch.cat(scores)
    return weights


def raw(model, x):
    return torch.stack([model.aggregator.attend(row)[1] for row in x])[:, None]


READERS = {
    "MIL-Lab:src.models.abmil.ABMILModel": read_abmil,
    "MIL-Lab:src.builder.create_model / src.builder.save_model(save_pretrained=True)": read_feather,
}
