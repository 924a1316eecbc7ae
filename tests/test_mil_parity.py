"""ABMIL against what MIL-Lab's implementation computed (see each case's meta.json)."""

import pytest
import torch
from torch import Tensor

import wsizoo
from wsizoo.testing import parity_cases
from wsizoo.testing.parity_runner import Case, compare

SUBJECT = "MIL-Lab:src.models.abmil.ABMILModel"
CASES = [case for case in parity_cases("mil") if case.subject == SUBJECT]
NAMES = {  # theirs -> ours; the plain attention network is one Sequential there
    "patch_embed": "aggregator.embed",
    "global_attn.attention_a.0": "aggregator.value",
    "global_attn.attention_b.0": "aggregator.gate",
    "global_attn.attention_c": "aggregator.score",
    "global_attn.module.0": "aggregator.value",
    "global_attn.module.3": "aggregator.score",
    "classifier": "head.linear",
}


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.system}/{case.name}")
def test_abmil_equals_the_published_implementation(case: Case) -> None:
    compare(case, read_abmil(case))


def test_there_are_cases() -> None:
    assert CASES


def read_abmil(case: Case) -> dict[str, Tensor]:
    """Every tensor of a case, from our model with the case's parameters."""
    model = load_case(case)
    given = case.inputs()
    x = given["x"].requires_grad_()
    rows = [run(model, row) for row in x]
    kept = [run(model, row[mask.bool()]) for row, mask in zip(x, given["attn_mask"], strict=True)]
    logits = torch.stack([row["logits"] for row in rows])  # (B, C)
    (logits * given["cotangent"]).sum().backward()
    loss = torch.nn.functional.cross_entropy(logits, given["label"])
    masked = torch.zeros_like(given["attn_mask"])
    masked[given["attn_mask"].bool()] = torch.cat([row["weights"] for row in kept])
    found = {
        "out.logits": logits,
        "out.loss": loss,
        "out.slide_feats": torch.stack([row["slide"] for row in rows]),
        "out.attention_raw": torch.stack([row["raw"] for row in rows])[:, None],
        "out.attention": torch.stack([row["weights"] for row in rows])[:, None],
        "out.masked_logits": torch.stack([row["logits"] for row in kept]),
        "out.masked_slide_feats": torch.stack([row["slide"] for row in kept]),
        "out.masked_attention": masked[:, None],
        "grad.x": x.grad,
    }
    parameters = dict(model.named_parameters())
    for name in case.tolerance:
        if name.startswith("grad.model."):
            found[name] = parameters[ours(name.removeprefix("grad.model."))].grad
    return {name: value for name, value in found.items() if value is not None}


def load_case(case: Case) -> wsizoo.SlideModel:
    config = case.config
    model = wsizoo.build(
        "abmil-uni",
        f"encoder.dim={config['in_dim']}",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.attention={config['attn_dim']}",
        f"aggregator.hidden={[config['embed_dim']] * (config['num_fc_layers'] - 1)}",
        f"aggregator.gated={str(config['gate']).lower()}",
        f"head.classes={list(range(config['num_classes']))}",
    )
    renamed = {ours(name.removeprefix("model.")): t for name, t in case.weights().items()}
    model.load_state_dict(renamed, strict=True)
    return model


def run(model: wsizoo.SlideModel, features: Tensor) -> dict[str, Tensor]:
    aggregator = model.aggregator
    assert aggregator is not None
    assert model.head is not None
    bag = wsizoo.Bag(features)
    out = aggregator(bag)
    return {
        "logits": model.head(out)["logits"],
        "slide": out.slide,
        "weights": out.scores,
        "raw": aggregator.attend(features)[1],  # type: ignore[operator]
    }


def ours(name: str) -> str:
    old = max((key for key in NAMES if name.startswith(key + ".")), key=len)
    return NAMES[old] + name.removeprefix(old)
