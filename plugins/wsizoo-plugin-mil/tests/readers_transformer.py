"""MIL-Lab's plain Transformer."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from wsizoo_plugin_mil.mil_lab_format import MILLab
from wsizoo_plugin_mil.multihead import weights

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))


def read(case):
    config, given = case.config, case.inputs()
    assert config["num_fc_layers"] == 1

    def made(*further):
        return R.model_of(
            case,
            MILLab(),
            "transformer-uni",
            f"encoder.dim={config['in_dim']}",
            f"aggregator.dim={config['embed_dim']}",
            f"aggregator.layers={config['num_attention_layers']}",
            f"aggregator.heads={config['num_heads']}",
            f"aggregator.mlp={max(0, config['encoder_mlp_dim'])}",
            f"aggregator.dropout={config['dropout']}",
            *further,
            classes=config["num_classes"],
        )

    model, x = made(), given["x"].requires_grad_()
    bag = R.slide(x[0])
    output = model(bag)
    _, asked = model.aggregator.tokens(x[0], [bag])
    maps = [weights(*part.chunk(3, 1)[:2], config["num_heads"]) for (part,) in asked]
    torch.testing.assert_close(output.scores, maps[-1][0, 1:])
    found = {
        "out.logits": output.logits[None],
        "out.slide_feats": output.embedding[None],
        "out.attention_layer0": maps[0][None],
        "out.logits_when_attention_requested": made("aggregator.compat=attention-requested")(
            bag
        ).logits[None],
        "out.loss": F.cross_entropy(output.logits[None], given["label"]),
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {"MIL-Lab:src.models.transformer.TransformerModel": read}
