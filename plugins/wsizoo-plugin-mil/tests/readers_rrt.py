"""The authors' RRT-MIL, and what MIL-Lab calls so."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.rrt_format import RRTOfficial

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
OPTIONS = {  # the authors' name -> ours, and what their class does unless it is said
    "mlp_dim": ("dim", 512),
    "region_num": ("regions", 8),
    "n_layers": ("layers", 2),
    "n_heads": ("heads", 8),
    "epeg_k": ("epeg", 15),
    "crmsa_k": ("slots", 3),
    "crmsa_heads": ("cross_heads", 8),
    "crmsa_mlp": ("slot_mlp", False),
    "all_shortcut": ("shortcut", False),
    "ffn": ("ffn", False),
    "da_act": ("activation", "relu"),
    "da_gated": ("gated", False),
    "da_bias": ("bias", False),
    "act": ("embed_activation", "relu"),
}
FIRST = 60  # tokens that the cases hold


def read_authors(case):
    config, given = case.config, case.inputs()
    assert set(config) <= {*OPTIONS, "input_dim", "n_classes"}
    model = R.model_of(
        case,
        RRTOfficial(),
        "rrt-uni",
        f"encoder.dim={config['input_dim']}",
        *(
            f"aggregator.{ours}={str(config.get(theirs, usual)).lower()}"
            for theirs, (ours, usual) in OPTIONS.items()
        ),
        classes=config["n_classes"],
    )
    x, aggregator = given["x"].requires_grad_(), model.aggregator
    output = model(R.slide(x[0]))
    *layers, embedded_anew = aggregator.steps(aggregator.embed(x[0]))
    found = {
        "out.logits": output.logits[None],
        "out.after_rmsa": layers[-2][None, :FIRST],
        "out.after_crmsa": layers[-1][None, :FIRST],
        "out.reembedded": embedded_anew[None, :FIRST],
        "out.attention": output.scores[None],
        "out.attention_raw": aggregator.attention(embedded_anew).t(),
    }
    torch.testing.assert_close(embedded_anew, aggregator(R.slide(x[0])).instances)
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, RRTOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        MILLab(),
        "rrt-uni",
        f"encoder.dim={config['in_dim']}",
        "aggregator.variant=mil-lab",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.layers={config['n_layers']}",
        f"aggregator.heads={config['n_heads']}",
        f"aggregator.dim_head={config['trans_dim']}",
        f"aggregator.embed_activation={config['act']}",
        classes=config["num_classes"],
    )
    assert config["mlp_dim"] == config["embed_dim"]
    x = given["x"].requires_grad_()
    output = model(R.slide(x[0]))
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.attention": output.scores[None],
        "out.loss": F.cross_entropy(output.logits[None], given["label"]),
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "RRT-MIL:modules.rrt.RRTMIL": read_authors,
    "MIL-Lab:src.models.rrt.RRTMILModel": read_mil_lab,
}
