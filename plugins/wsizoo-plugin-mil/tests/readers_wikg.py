"""The authors' WiKG, and MIL-Lab's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.wikg_format import WiKGOfficial

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
POOLS = {"attn": "attention", "mean": "mean", "max": "max"}
FIRST = 40  # nodes that the cases hold


def made(case, layout, in_dim, dim, *further):
    config = case.config
    return R.model_of(
        case,
        layout,
        "wikg-uni",
        f"encoder.dim={config[in_dim]}",
        f"aggregator.dim={config[dim]}",
        f"aggregator.k={config['topk']}",
        f"aggregator.mix={config['agg_type']}",
        f"aggregator.pool={POOLS[config['pool']]}",
        f"aggregator.dropout={config['dropout']}",
        *further,
        classes=config.get("n_classes") or config["num_classes"],
    )


def edges(model, x, bag):
    """Neighbours (1, N, k), likeness and its softmax of the same shape."""
    aggregator = model.aggregator
    head, tail = aggregator.ends(x, [bag])
    (index,) = aggregator.neighbours(head, tail, [bag])
    likeness = aggregator.gather(head, tail, [index])[1].view(index.shape)
    return index[None], likeness[None], likeness.softmax(1)[None]


def read_authors(case):
    given = case.inputs()
    model = made(case, WiKGOfficial(), "dim_in", "dim_hidden")
    x = given["x"].requires_grad_()
    bag = R.slide(x[0])
    output = model(bag)
    index, likeness, share = edges(model, x[0], bag)
    nodes = model.aggregator(bag).instances
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.neighbour_index": index,
        "out.neighbour_score": likeness,
        "out.neighbour_prob": share,
        "out.node_embedding": nodes[None, :FIRST],
    }
    if model.aggregator.attention is not None:
        found["out.attention"] = output.scores[None]
        found["out.attention_raw"] = model.aggregator.attention(nodes).t()
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, WiKGOfficial())}


def read_mil_lab(case):
    given = case.inputs()
    model = made(case, MILLab(), "in_dim", "embed_dim", "aggregator.variant=mil-lab")
    x = given["x"].requires_grad_()
    bag = R.slide(x[0])
    output = model(bag)
    index, _, share = edges(model, x[0], bag)
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.neighbour_index": index,
        "out.neighbour_weight": share,
        "out.loss": F.cross_entropy(output.logits[None], given["label"]),
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "WiKG:model.WiKG": read_authors,
    "MIL-Lab:src.models.wikg.WIKGMILModel": read_mil_lab,
}
