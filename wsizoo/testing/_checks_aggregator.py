"""Conformance checks of aggregators alone, and of whole models."""

from __future__ import annotations

import torch
from torch import Tensor

from wsizoo.bag import BagBatch
from wsizoo.interfaces import Aggregated
from wsizoo.mil.heads import ClassificationHead, SegmentationHead
from wsizoo.model import SlideModel
from wsizoo.spec import ModelSpec
from wsizoo.testing._checks_bag import RETURNS, both_modes
from wsizoo.testing._subject import (
    CLASSES,
    N_OUTPUTS,
    N_PATCHES,
    PER_ROW,
    Subject,
    check_finite,
    check_same,
    evaluate,
    fields,
    require,
)

PACKED = (1, 8, N_PATCHES)  # patches of the slides packed together


def check_slide_shape(subject: Subject) -> None:
    """The head is built to `out_dim`, and reads `slide` (or what is there instead)."""
    width = subject.make().out_dim
    for mode, output in both_modes(subject):
        values = fields(output, N_PATCHES)
        given = {"slide", "instances", "logits", "instance_logits"} & set(values)
        require(bool(given), f"in {mode} it fills none of slide, instances and any logits")
        if output.slide is not None:
            shape = tuple(output.slide.shape)
            require(
                shape == (width,), f"in {mode}, slide is {shape}, expected ({width},) = (out_dim,)"
            )
        elif not getattr(subject.cls, "owns_classifier", False):
            declared = getattr(subject.cls, "gives_slide", True)
            require(not declared, f"in {mode} it leaves slide None: declare gives_slide = False")


def check_instances_as_declared(subject: Subject) -> None:
    """Per-patch heads fit exactly the aggregators that say `gives_instances`."""
    width, declared = subject.make().instance_dim, getattr(subject.cls, "gives_instances", False)
    for mode, output in both_modes(subject):
        given = output.instances is not None
        if not declared:
            require(not given, "it fills instances: declare gives_instances = True")
            continue
        require(given, f"gives_instances = True, but in {mode} instances are None")
        shape, expected = tuple(output.instances.shape), (N_PATCHES, width)
        require(
            shape == expected,
            f"in {mode}, instances are {shape}, expected {expected} = (N, instance_dim)",
        )


def check_logits_as_declared(subject: Subject) -> None:
    """Only an aggregator that owns its classifier decides logits, of the slide or of patches."""
    declared = getattr(subject.cls, "owns_classifier", False)
    for mode, output in both_modes(subject):
        expected = {"logits": (N_OUTPUTS,), "instance_logits": (N_PATCHES, N_OUTPUTS)}
        values = fields(output, N_PATCHES)
        given = sorted(set(expected) & set(values))
        if not declared:
            require(not given, f"it fills {given}: declare owns_classifier = True")
            continue
        require(bool(given), f"owns_classifier = True, but in {mode} it fills no logits")
        for name in given:
            shape = tuple(values[name].shape)
            require(shape == expected[name], f"in {mode}, {name} is {shape}, not {expected[name]}")


def check_classifier_tensors(subject: Subject) -> None:
    """`adapt` keeps every tensor but the classifier's, so that must be named."""
    if not getattr(subject.cls, "owns_classifier", False):
        return
    three = subject.make().inference_state()
    four = subject.make(n_outputs=N_OUTPUTS + 1).inference_state()
    resized = {name for name in three if name not in four or four[name].shape != three[name].shape}
    named = set(getattr(subject.make(), "classifier_tensors", ()))
    require(bool(resized), "n_outputs changes the shape of no tensor")
    missing, unknown = sorted(resized - named), sorted(named - set(three))
    require(
        not missing, f"the shapes of {missing} follow n_outputs: name them in classifier_tensors"
    )
    require(
        not unknown, f"classifier_tensors names {unknown}, which inference_state() does not hold"
    )


def check_packed_equals_single(subject: Subject) -> None:
    """`forward_packed` is for speed only: the same numbers as one slide after the other."""
    module = subject.awake()
    if module.forward_packed is None:
        return
    bags = [subject.bag(n, seed=n) for n in PACKED]
    with torch.no_grad():
        output = module.forward_packed(BagBatch.pack(bags))
    expected_type = RETURNS[subject.kind]
    require(isinstance(output, expected_type), f"forward_packed returns {type(output).__name__}")
    singles = [evaluate(subject, module, bag) for bag in bags]
    expected: dict[str, Tensor] = {}
    for name in singles[0]:
        join = torch.cat if name in PER_ROW else torch.stack
        expected[name] = join([values[name] for values in singles])
    check_same(fields(output, sum(PACKED)), expected, "forward_packed beside one by one")
    require(not output.losses and not output.predictions, "in eval, forward_packed returns losses")
    trained = module.train().forward_packed(BagBatch.pack(bags))
    slides = {p.slide for p in trained.predictions.values()}
    require(slides <= {0, 1, 2}, f"forward_packed makes predictions for slides {slides} of 3")


def check_weights_as_declared(subject: Subject) -> None:
    """`takes_weights`: of weight 0, a patch is as if it were not there; 1 changes nothing."""
    if not getattr(subject.cls, "takes_weights", False):
        return
    module, bag = subject.awake(), subject.bag()
    every = torch.arange(len(bag))
    ones, half = torch.ones(len(bag)), (every % 2).float()
    with torch.no_grad():
        check_same(_of_slide(module(bag, ones)), _of_slide(module(bag)), "all weights 1")
        kept = _of_slide(module(bag.subset(every[1::2])))
        check_same(_of_slide(module(bag, half)), kept, "every second weight 0")


def _of_slide(output: Aggregated) -> dict[str, Tensor]:
    values = fields(output, N_PATCHES)
    return {name: value for name, value in values.items() if name not in PER_ROW}


def check_trains_in_a_model(subject: Subject) -> None:
    """With a head it makes a slide model whose loss can be minimised, one slide or several."""
    model = _model(subject).train()
    for bags in (subject.bag(), BagBatch.pack([subject.bag(n, seed=n) for n in PACKED])):
        output = model.forward_packed(bags) if isinstance(bags, BagBatch) else model(bags)
        terms = model.losses(output, bags)
        check_finite(terms, "losses in a slide model")
        total = torch.stack(list(terms.values())).sum()
        require(total.requires_grad, "the loss of a slide model depends on no parameter")
        total.backward()  # type: ignore[no-untyped-call]
    check_finite(
        {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, "gradients"
    )


def _model(subject: Subject) -> SlideModel:
    aggregator = subject.awake()
    values = evaluate(subject, aggregator)
    owned = getattr(subject.cls, "owns_classifier", False)
    per_patch = ("logits" if owned else "slide") not in values
    maker = SegmentationHead if per_patch else ClassificationHead
    width = aggregator.instance_dim if per_patch else aggregator.out_dim
    head = maker(None if owned else width, CLASSES)
    spec = ModelSpec(summary="", licence="", source="")
    return SlideModel("conformance", spec, subject.width, aggregator=aggregator, head=head)


def check_output_shapes(subject: Subject) -> None:
    """A whole model fills the same fields, in the same shapes, as a composed one."""
    for mode, output in both_modes(subject):
        values = fields(output, N_PATCHES)
        require(bool(values), f"in {mode} every field is None")
        for name, dimensions in (("logits", 1), ("hazards", 1), ("risk", 0), ("value", 0)):
            if name in values:
                shape = tuple(values[name].shape)
                require(
                    len(shape) == dimensions,
                    f"in {mode}, {name} is {shape}: {dimensions} dimensions",
                )
        if "embedding" in values:
            shape = tuple(values["embedding"].shape)
            require(len(shape) == 1, f"in {mode}, embedding is {shape}, expected (E,)")
        if "instance_logits" in values:
            shape = tuple(values["instance_logits"].shape)
            require(
                len(shape) == 2 and shape[0] == N_PATCHES, f"in {mode}, instance_logits are {shape}"
            )


AGGREGATOR = (
    check_slide_shape,
    check_instances_as_declared,
    check_logits_as_declared,
    check_classifier_tensors,
    check_packed_equals_single,
    check_weights_as_declared,
    check_trains_in_a_model,
)
MODEL = (check_output_shapes, check_packed_equals_single)
