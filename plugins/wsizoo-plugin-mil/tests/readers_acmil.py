"""ACMIL with gated attention, and with multi-head attention of tokens."""

import copy
import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn
from wsizoo_plugin_mil.acmil import HIDDEN_SCORE
from wsizoo_plugin_mil.acmil_format import TELLING, ACMILOfficial

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))


def read_gated(case):
    return read(case, "acmil-ga-uni", f"aggregator.attention={case.config['D_attention']}")


def read_tokens(case):
    return read(case, "acmil-mha-uni", f"aggregator.heads={case.config['heads']}")


def read(case, name, *further):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        ACMILOfficial(),
        name,
        f"encoder.dim={config['D_feat']}",
        f"aggregator.dim={config['D_inner']}",
        f"aggregator.branches={config['n_token']}",
        f"aggregator.masked={config['n_masked_patch'] if 'noise' in given else 0}",
        f"aggregator.mask_drop={config['mask_drop']}",
        *further,
        classes=config["n_class"],
    )
    R.without_dropout(model).train()
    x, aggregator, seen = given["x"].requires_grad_(), model.aggregator, {}
    aggregator.hidden = watched(aggregator, given.get("noise"), seen)
    bag = R.slide(x[0], given["label"])
    output = model(bag)
    terms = model.losses(output, bag)
    found = {
        "out.slide_logits": output.logits[None],
        "out.sub_logits": sub_logits(case, output, aggregator, seen, x[0]),
        "out.attention_raw": by_head(seen["raw"], config),
        "out.attention": by_head(seen["masked"].softmax(1), config),
        "out.slide_loss": terms["task"],
        "out.sub_loss": terms.get("branches/0", torch.zeros(())),
        "out.diversity_loss": terms.get("diversity", torch.zeros(())),
        "out.loss": torch.stack(list(terms.values())).sum(),
    }
    if "noise" in given:
        found["out.topk_index"] = by_head(aggregator.best(seen["raw"]), config)
        found["out.masked"] = by_head(seen["masked"] == HIDDEN_SCORE, config)
    torch.testing.assert_close(output.scores, seen["masked"].softmax(1).mean(0))
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, ACMILOfficial())}


def watched(aggregator, noise, seen):
    """`hidden` with this noise, which leaves what it took and gave in `seen`."""
    hidden = aggregator.hidden

    def keeps(raw):
        seen["raw"] = raw
        seen["masked"] = hidden(raw, None if noise is None else noise.flatten(0, -2))
        return seen["masked"]

    return keeps


def sub_logits(case, output, aggregator, seen, features):
    """Of one attention, by what the file holds of its branch and never uses."""
    if output.predictions:
        return output.predictions["branches/0"].logits
    w, paid = case.weights(), seen["masked"].softmax(1)
    vectors = paid @ aggregator.embed(features)  # (H, E)
    if "q" in w:
        tell = copy.deepcopy(aggregator.telling[0])
        for ours, theirs in TELLING.items():
            own = getattr(tell, ours)
            for name, _ in own.named_parameters():
                setattr(own, name, nn.Parameter(w[f"sub_attention.0.{theirs}.{name}"]))
        vectors = tell(vectors)[None]
    return F.linear(vectors, w["classifier.0.fc.weight"], w["classifier.0.fc.bias"])


def by_head(rows, config):
    """(K H, n) -> (H, K, n)."""
    return rows.unflatten(0, (config["n_token"], -1)).transpose(0, 1)


READERS = {
    "ACMIL:architecture.transformer.ACMIL_GA": read_gated,
    "ACMIL:architecture.transformer.ACMIL_MHA": read_tokens,
}
