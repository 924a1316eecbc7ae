"""The authors' ILRA, and MIL-Lab's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.ilra_format import ILRAOfficial
from wsizoo_plugin_mil.mil_lab_format import MILLab

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
FIRST = 40  # tokens that the cases hold


def read_authors(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        ILRAOfficial(),
        "ilra-uni",
        f"encoder.dim={config['feat_dim']}",
        f"aggregator.dim={config['hidden_feat']}",
        f"aggregator.layers={config['num_layers']}",
        f"aggregator.heads={config['num_heads']}",
        f"aggregator.rank={config['topk']}",
        f"aggregator.norm={str(config['ln']).lower()}",
        classes=config["n_classes"],
    )
    x = given["x"].requires_grad_()
    output = model(R.slide(x[0]))
    logits = output.logits[None]
    found = {
        "out.logits": logits,
        "out.prob": logits.softmax(1),
        "out.hat": logits.argmax(1, keepdim=True),
        "out.slide_feats": output.embedding[None, None],
        "out.after_gab0": model.aggregator.layers[0](x[0], [x.shape[1]])[None, :FIRST],
        "out.pooling_attention": output.scores[None, None],
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, ILRAOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        MILLab(),
        "ilra-uni",
        f"encoder.dim={config['in_dim']}",
        "aggregator.variant=mil-lab",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.layers={config['num_attention_layers']}",
        f"aggregator.heads={config['num_heads']}",
        f"aggregator.rank={config['topk']}",
        classes=config["num_classes"],
    )
    x = given["x"].requires_grad_()
    output = model(R.slide(x[0]))
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None, None],
        "out.attention": output.scores[None],
        "out.loss": F.cross_entropy(output.logits[None], given["label"]),
    }
    R.backward(case, found)
    torch.testing.assert_close(output.scores.sum(), torch.tensor(1.0))
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "low_rank_wsi:models.ilra.ILRA": read_authors,
    "MIL-Lab:src.models.ilra.ILRAModel": read_mil_lab,
}
