"""CLAM's own CLAM-SB and CLAM-MB, and MIL-Lab's CLAM."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
from wsizoo_plugin_mil.clam import LOSSES
from wsizoo_plugin_mil.clam_format import ClamOfficial
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.packed import split

import wsizoo

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
SIZES = {"small": (512, 256), "big": (512, 384)}


def options(config, dim, attention, in_dim):
    return [
        f"encoder.dim={in_dim}",
        f"aggregator.dim={dim}",
        f"aggregator.attention={attention}",
        f"aggregator.gated={str(config['gate']).lower()}",
        f"aggregator.k={config['k_sample']}",
        f"aggregator.subtyping={str(config['subtyping']).lower()}",
        f"aggregator.instance_loss={config.get('instance_loss_fn', 'ce')}",
        f"aggregator.bag_weight={config['bag_weight']}",
    ]


def losses(model, bag):
    """In training mode with every dropout at 0: the output, and what is minimised by name."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.train()
    output = model(bag)
    return output, model.losses(output, bag)


def attention(model, features, bag):
    """Scores before their softmax (rows, N), and their softmax."""
    instances = model.aggregator.embed(features)
    (raw,) = split(model.aggregator.attention(instances), [bag])
    return instances, raw.t(), torch.softmax(raw.t(), 1)


def read_sb(case):
    return read(case, "clam-sb-uni")


def read_mb(case):
    return read(case, "clam-mb-uni")


def read(case, name):
    config, given = case.config, case.inputs()
    made = options(config, *SIZES[config["size_arg"]], config["embed_dim"])
    model = R.model_of(case, ClamOfficial(), name, *made, classes=config["n_classes"])
    x, label = given["x"].requires_grad_(), int(given["label"])
    bag, aggregator, share = R.slide(x, label), model.aggregator, config["bag_weight"]
    output, terms = losses(model, bag)
    instances, raw, weights = attention(model, x, bag)
    chosen = aggregator.chosen(raw, label)
    judged = {i: aggregator.judged(instances[index])[:, i] for i, (index, _) in chosen.items()}
    found = {
        "out.logits": output.logits[None],
        "out.prob": output.logits.softmax(0)[None],
        "out.hat": output.logits.argmax()[None, None],
        "out.features": output.embedding.reshape(len(raw), -1),
        "out.attention": weights,
        "out.attention_raw": raw,
        "out.inst_labels": torch.cat([target for _, target in chosen.values()]),
        "out.inst_preds": torch.cat([each.argmax(1) for each in judged.values()]),
        "out.top_positive_index": raw.argsort(1, descending=True)[:, : config["k_sample"]],
        "out.top_negative_index": raw.argsort(1)[:, : config["k_sample"]],
        "out.bag_loss": terms["task"] / share,
        "out.instance_loss_ce": terms["instances"] / (1 - share),
        "out.total_loss": terms["task"] + terms["instances"],
    }
    aggregator.criterion = LOSSES["svm"]
    found["out.instance_loss_svm"] = aggregator.instance_loss([raw], instances, [label])
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, ClamOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    made = options(config, config["embed_dim"], config["attention_dim"], config["in_dim"])
    model = R.model_of(
        case,
        MILLab(),
        "clam-sb-uni",
        *made,
        "aggregator.variant=mil-lab",
        classes=config["num_classes"],
    )
    assert config["n_fc_layers"] == 1
    x = given["x"].requires_grad_()
    bag = wsizoo.Bag(x[0], target={"label": int(given["label"])})
    output, terms = losses(model, bag)
    _, raw, weights = attention(model, x[0], bag)
    share = config["bag_weight"]
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.attention": weights,
        "out.attention_raw": raw,
        "out.bag_loss": terms["task"] / share,
        "out.instance_loss": terms["instances"] / (1 - share),
        "out.loss": terms["task"] + terms["instances"],
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "CLAM:models.model_clam.CLAM_SB": read_sb,
    "CLAM:models.model_clam.CLAM_MB": read_mb,
    "MIL-Lab:src.models.clam.CLAMModel": read_mil_lab,
}
