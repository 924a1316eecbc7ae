"""Nystrom attention of lucidrains, the authors' TransMIL, and MIL-Lab's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.nystrom import NystromAttention
from wsizoo_plugin_mil.transmil_format import TransMILOfficial

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
LAYERS = {"to_qkv": "qkv", "to_out.0": "out", "res_conv": "conv"}


def read_nystrom(case):
    config, given = case.config, case.inputs()
    assert config["residual"]
    layer = NystromAttention(
        config["dim"],
        config["heads"],
        config["dim_head"],
        config["num_landmarks"],
        config["pinv_iterations"],
        config["residual_conv_kernel"],
    ).eval()
    renamed = {}
    for name, tensor in case.weights().items():
        theirs, _, ending = name.rpartition(".")
        renamed[f"{LAYERS[theirs]}.{ending}"] = tensor
    layer.load_state_dict(renamed, strict=True)
    x = given["x"].requires_grad_()
    y, factors = layer.with_factors(x, given.get("mask"))
    length = factors.q.shape[2]
    found = {"out.y": y, "out.attention_rows": factors.rows(slice(length - 4, length))}
    R.backward(case, found)
    return {**found, "grad.x": x.grad}


def read_authors(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        TransMILOfficial(),
        "transmil-uni",
        f"encoder.dim={config['in_dim']}",
        f"aggregator.dim={config['dim']}",
        f"aggregator.heads={config['heads']}",
        classes=config["n_classes"],
    )
    attention = model.aggregator.blocks[0].attention
    assert attention.landmarks == config["num_landmarks"]
    assert attention.iterations == config["pinv_iterations"]
    x = given["x"].requires_grad_()
    tokens = model.aggregator.tokens(x)
    logits = model.head.linear(tokens["normed"][:, 0])
    if len(x) == 1:
        torch.testing.assert_close(model(R.slide(x[0])).logits[None], logits)
    found = {
        "out.logits": logits,
        "out.prob": logits.softmax(1),
        "out.hat": logits.argmax(1),
        "out.after_layer1": tokens["first"][:, :40],
        "out.after_ppeg": tokens["placed"][:, :40],
        "out.after_layer2_cls": tokens["last"][:, 0],
        "out.cls_attention_layer1": tokens["factors"][0].token_row(0),
        "out.cls_attention_layer2": tokens["factors"][1].token_row(0),
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, TransMILOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        MILLab(),
        "transmil-uni",
        f"encoder.dim={config['in_dim']}",
        "aggregator.variant=mil-lab",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.heads={config['num_heads']}",
        f"aggregator.layers={config['num_attention_layers']}",
        classes=config["num_classes"],
    )
    assert config["num_fc_layers"] == 1
    x = given["x"].requires_grad_()
    output = model(R.slide(x[0]))
    paid = model.aggregator.paid(model.aggregator.tokens(x))
    torch.testing.assert_close(output.scores, paid[0, : x.shape[1]])
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.attention": paid,
        "out.loss": F.cross_entropy(output.logits[None], given["label"]),
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "nystrom-attention:nystrom_attention.NystromAttention (PyPI 0.0.14)": read_nystrom,
    "TransMIL:models.TransMIL.TransMIL": read_authors,
    "MIL-Lab:src.models.transmil.TransMILModel": read_mil_lab,
}
