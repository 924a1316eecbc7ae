"""The authors' DTFD-MIL, and MIL-Lab's."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
from wsizoo_plugin_mil.dtfd_format import DTFDOfficial
from wsizoo_plugin_mil.mil_lab_format import MILLab

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))


def computed(model, bag, order):
    """With this order of patches: the answer, the losses (without dropout), all there is."""
    tiers, seen = model.aggregator.pooled, {}

    def keeps(rows, scores, _):
        seen.update(tiers(rows, scores, order), scores=scores)
        return seen

    model.aggregator.pooled = keeps
    R.without_dropout(model).train()
    terms = model.losses(model(bag), bag)
    return model.eval()(bag), terms, seen


def read_authors(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        DTFDOfficial(),
        "dtfd-uni",
        f"encoder.dim={config['in_dim']}",
        f"aggregator.dim={config['mDim']}",
        f"aggregator.attention={config['D_attention']}",
        f"aggregator.residuals={config['numLayer_Res']}",
        f"aggregator.groups={config['numGroup']}",
        f"aggregator.total={config['total_instance']}",
        f"aggregator.distill={config['distill_type'].lower()}",
        "aggregator.compat=published",
        classes=config["num_cls"],
    )
    assert config["droprate"] == config["droprate_2"] == 0
    x, order = given["x"].requires_grad_(), given["perm"]
    output, terms, seen = computed(model, R.slide(x, given["label"]), order)
    paid = seen["paid"]
    sizes = torch.stack([(column > 0).sum() for column in paid.unbind(1)])
    assert torch.equal(sizes, given["group_sizes"])
    rows = model.aggregator.blocks(model.aggregator.embed(x))
    found = {
        "out.slide_logits": output.logits[None],
        "out.slide_prob": output.logits.softmax(0)[None],
        "out.sub_logits": seen["judged"],
        "out.pseudo_feats": seen["handed"],
        "out.tier1_attention_raw": seen["scores"][order],
        "out.tier1_attention": paid.sum(1)[order],
        "out.tier1_patch_prob": model.aggregator.surest(rows, paid.sum(1))[order],
        "out.tier2_attention_raw": seen["raw"][None],
        "out.tier2_attention": seen["raw"].softmax(0)[None],
        "out.tier1_loss": terms["groups/0"],
        "out.tier2_loss": terms["task"],
    }
    if "index" in seen:
        found["out.selected_index"] = seen["index"]
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, DTFDOfficial())}


def read_mil_lab(case):
    config, given = case.config, case.inputs()
    model = R.model_of(
        case,
        MILLab(),
        "dtfd-uni",
        "aggregator.variant=mil-lab",
        f"encoder.dim={config['in_dim']}",
        f"aggregator.dim={config['embed_dim']}",
        f"aggregator.attention={config['attention_dim']}",
        f"aggregator.residuals={config['num_residuals']}",
        f"aggregator.groups={config['num_group']}",
        f"aggregator.total={config['total_instance']}",
        f"aggregator.distill={config['distill'].lower()}",
        f"aggregator.bag_weight={config['bag_weight']}",
        "aggregator.compat=published",
        classes=config["num_classes"],
    )
    x = given["x"].requires_grad_()
    output, terms, seen = computed(model, R.slide(x[0], given["label"]), given["perm"])
    found = {
        "out.logits": output.logits[None],
        "out.attention_raw": seen["raw"][:, None],
        "out.pseudo_feats": seen["handed"],
        "out.instance_loss": terms["groups/0"] / (1 - config["bag_weight"]),
        "out.loss": terms["task"] + terms["groups/0"],
    }
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MILLab())}


READERS = {
    "DTFD-MIL:Main_DTFD_MIL.train_attention_preFeature_DTFD": read_authors,
    "MIL-Lab:src.models.dftd.DFTDModel": read_mil_lab,
}
