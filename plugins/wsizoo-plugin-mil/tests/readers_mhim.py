"""MHIM-MIL, v1 and v2, with its three encoders: teacher, masks, merging, student."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import torch
from wsizoo_plugin_mil.mhim_format import MHIMOfficial
from wsizoo_plugin_mil.mhim_masking import kept_patches, ranking

R = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("reading.py"))))
KINDS = {"attn": "abmil", "dsmil": "dsmil", "selfattn": "transmil"}


def network(case, whose, merge_test=False):
    c = case.config
    given = {
        "version": c["version"],
        "dim": c["mlp_dim"],
        "activation": c.get("act", "relu"),
        "pooling": c.get("da_act", "relu"),
        "alpha": c["aux_alpha"],
        "temperature": c["temp_t"],
        "by_class": str(c.get("attn2score", False)).lower(),
        "high": c.get("mask_ratio_h", 0.0),
        "high_among": c.get("mask_ratio_hr", 1.0),
        "at_random": c.get("mask_ratio", 0.0),
        "low": c.get("mask_ratio_l", 0.0),
        "queries": c.get("merge_k", 0) if c.get("merge_enable") else 0,
        "keep": c.get("merge_ratio", 0.8),
        "merge_momentum": c.get("merge_mm", 0.9998),
        "merge_test": str(merge_test).lower(),
    }
    assert c["temp_s"] == 1
    prefix = f"{whose}."
    weights = {n.removeprefix(prefix): t for n, t in case.weights().items() if n.startswith(prefix)}
    return R.model_of(
        case,
        MHIMOfficial(),
        f"mhim-{KINDS[c['baseline']]}-uni",
        f"encoder.dim={c['input_dim']}",
        *(f"aggregator.{name}={value}" for name, value in given.items()),
        classes=c["n_classes"],
        tensors=weights,
    )


def read(case):
    given = case.inputs()
    teacher = network(case, "teacher")
    model = network(case, "student", case.config.get("merge_test", False))
    x = given["x"].requires_grad_()
    bag, aggregator = R.slide(x[0], given["label"]), model.aggregator
    found = {
        **streams(model, bag, "student_eval"),
        **streams(teacher, bag, "teacher_eval"),
        **attention(aggregator, x[0]),
    }
    state = teacher.aggregator.student.state_dict()
    aggregator.teacher.load_state_dict(state)
    R.without_dropout(model).train()
    taught = aggregator.taught(x[0], [bag])[0]
    hardness = taught.hardness(aggregator.by_class)
    found |= {"out.teacher_score": hardness if len(hardness) == 1 else hardness[None]}
    found["out.teacher_feat"] = taught.rows if len(taught.rows) == 1 else taught.rows[None]
    found |= masked(case, aggregator, hardness)
    plan = aggregator.divided(found["out.kept_index"], given.get("merge_noise0"))
    if "merge_noise0" in given:
        places = {patch: i for i, patch in enumerate(found["out.kept_index"].tolist())}
        found["out.merge_keep_position"] = torch.tensor([places[i] for i in plan.kept.tolist()])
    aggregator.plan = lambda _: plan
    seen = []
    aggregator.student.encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output = model(bag)
    terms = model.losses(output, bag)
    loss = {name: value for name, value in terms.items() if name != "consistency"}
    found |= {
        "out.n_patches": torch.tensor(len(bag)),
        "out.n_tokens_student": torch.tensor(len(seen[0])),
        "out.student_encoder_input": seen[0][None, -8:],
        "out.student_logits": output.logits[None],
        "out.class_loss": torch.stack(list(loss.values())).sum(),
        "out.consistency_loss": terms["consistency"] / case.config["aux_alpha"],
        "out.loss": torch.stack(list(terms.values())).sum(),
    }
    if aggregator.merging is not None:
        found["out.global_q_after"] = aggregator.merging.queries
    both = aggregator.student.encoder(seen[0]).streams
    if both is not None:
        found |= {"out.student_logits_bag": both[:1], "out.student_logits_inst": both[1:]}
    R.backward(case, found)
    return {**found, "grad.x": x.grad, **R.gradients(model, MHIMOfficial())}


def streams(model, bag, name):
    """What a network answers in evaluation; of DSMIL, both its streams."""
    part = model.eval().aggregator
    tokens = part.tokens(part.student.embed(bag.features), None)
    both = part.student.encoder(tokens).streams
    logits = model(bag).logits
    if both is None:
        return {f"out.{name}_logits": logits[None]}
    torch.testing.assert_close(logits, both.mean(0))
    return {f"out.{name}_logits_bag": both[:1], f"out.{name}_logits_inst": both[1:]}


def attention(aggregator, features):
    """What attention pooling pays to all tokens, the merged ones too; nothing of the others."""
    scores = getattr(aggregator.student.encoder, "scores", None)
    if scores is None:
        return {}
    raw = scores(aggregator.tokens(aggregator.student.embed(features), None)).t()
    return {
        "out.student_eval_attention_raw": raw,
        "out.student_eval_attention": raw.softmax(1),
    }


def masked(case, aggregator, hardness):
    """The masks, with the draws of the case, and what its ties leave open as it resolved them."""
    given, several = case.inputs(), len(hardness) > 1
    shares, n = aggregator.shares(), hardness.shape[1]
    ranked = [ranking(hardness, share.counts(n)[0], share.largest) for share in shares]
    step = 2 if several else 1
    names = [f"out.topk{step * i + step - 1}_index" for i in range(len(shares))]
    found = dict(zip(names, (index[None] for index in ranked), strict=True))
    ties = [case.given().get(name, found[name])[0] for name in names]
    for ours, theirs, share in zip(ranked, ties, shares, strict=True):
        same_votes(hardness, ours, theirs, share)
    orders = [given[f"randperm{i}"] for i in range(sum(n.startswith("randperm") for n in given))]
    kept = kept_patches(hardness, shares, ties, orders)
    dropped = sorted(set(range(n)) - set(kept.tolist()))
    in_their_order = list(set(range(n)) - set(dropped))  # that of a set of CPython
    found["out.dropped_index"] = torch.tensor(dropped)
    found["out.kept_index"] = torch.tensor(in_their_order)
    return found


def same_votes(hardness, ours, theirs, share):
    """Both rankings have as many votes, place by place; or as hard patches, of one head."""
    votes = hardness[0] if share.largest else -hardness[0]
    if len(hardness) > 1:
        votes = torch.zeros(hardness.shape[1])
        for row in hardness if share.largest else -hardness:
            votes[row.topk(len(ours)).indices] += 1
    torch.testing.assert_close(votes[ours].sort().values, votes[theirs].sort().values)


READERS = {"MHIM-MIL:modules.mhim.MHIM": read}
