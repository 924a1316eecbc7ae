"""The authors' DSMIL, and MIL-Lab's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.dsmil import critical_patches
from wsizoo_plugin_mil.dsmil_format import DSMILOfficial
from wsizoo_plugin_mil.mil_lab_format import MILLab

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))


def attention(model, features):
    """(N, C), of a model whose slides have such critical patches."""
    aggregator = model.aggregator
    instances = aggregator.embed(features)
    index, best = critical_patches(aggregator.instance(instances), [R.slide(features)])
    query = aggregator.query(instances)
    weights = torch.softmax(query @ query[index[0]].t() / query.shape[1] ** 0.5, 0)
    return index[0], best[0], weights


def read_authors(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        DSMILOfficial(),
        "dsmil-uni",
        f"encoder.dim={config['feats_size']}",
        f"aggregator.nonlinear={str(config['nonlinear']).lower()}",
        f"aggregator.passing_v={str(config['passing_v']).lower()}",
        f"aggregator.dropout_v={config['dropout_v']}",
        classes=config["num_classes"],
    )
    x, hot = given["x"].requires_grad_(), given["label"][0]
    label = int(hot[0]) if len(hot) == 1 else int(hot.argmax())
    assert len(hot) == 1 or torch.equal(hot, F.one_hot(hot.argmax(), len(hot)).to(hot))
    bag = R.slide(x, label)
    model.train()
    output = model(bag)
    terms = model.losses(output, bag)
    logits = output.logits[None]
    index, best, weights = attention(model, x)
    found = {
        "out.critical_index": index,
        "out.attention": weights,
        "out.bag_features": output.embedding.reshape(1, len(hot), -1),
        "out.bag_logits": logits,
        "out.instance_logits": output.instance_logits,
        "out.max_instance_logits": best,
        "out.bag_loss": 2 * terms["task"],
        "out.max_loss": 2 * terms["best patches/0"],
        "out.loss": torch.stack(list(terms.values())).sum(),
        "out.prob_bag": logits.sigmoid(),
        "out.prob_average": (logits.sigmoid() + best.sigmoid()) / 2,
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, DSMILOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        MILLab(),
        "dsmil-uni",
        f"encoder.dim={config['in_dim']}",
        "aggregator.variant=mil-lab",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.query={config['attn_dim']}",
        f"aggregator.dropout_v={config['dropout_v']}",
        "head.one_vs_rest=false",
        classes=config["num_classes"],
    )
    assert config["num_fc_layers"] == 1
    x = given["x"].requires_grad_()
    bag = R.slide(x[0], given["label"])
    output = model(bag)
    index, best, weights = attention(model, x[0])
    found = {
        "out.critical_index": index[None],
        "out.attention": weights[None],
        "out.instance_logits": output.instance_logits[None],
        "out.max_instance_logits": best[None],
        "out.bag_logits": 2 * output.logits[None] - best[None],
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding.reshape(1, config["num_classes"], -1),
        "out.loss": model.losses(output, bag)["task"],
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "dsmil-wsi:dsmil.MILNet(FCLayer, BClassifier)": read_authors,
    "MIL-Lab:src.models.dsmil.DSMILModel": read_mil_lab,
}
