"""Conformance checks that hold for every trainable part, whatever its kind."""

from __future__ import annotations

import inspect
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from wsizoo.interfaces import Aggregator, Encoder, Head, Part, Selector, WholeModel
from wsizoo.testing._subject import (
    N_PATCHES,
    CheckError,
    Subject,
    check_finite,
    check_same,
    evaluate,
    require,
    seeded,
    training_scalar,
)
from wsizoo.weights import load_strict, read_tensors, write_tensors

BASES: dict[str, type[Part]] = {
    "aggregator": Aggregator,
    "selector": Selector,
    "head": Head,
    "encoder": Encoder,
    "model": WholeModel,
}
STEPS = 10
SLOPPY = 10.0  # factor on the tolerances, where float32 meets float64


def check_base_class(subject: Subject) -> None:
    """The zoo and the trainer call methods that only the base class promises."""
    base = BASES[subject.kind]
    require(
        inspect.isclass(subject.cls) and issubclass(subject.cls, base),
        f"{subject.cls!r} is no {base.__name__}: class {subject.cls.__name__}({base.__name__})",
    )


def check_stated_widths(subject: Subject) -> None:
    """The next part is built to the width that this one states."""
    module = subject.make()
    if subject.kind == "head":
        n = module.n_outputs
        require(isinstance(n, int) and n >= 1, f"n_outputs is {n!r}, expected a number of outputs")
        return
    require(module.in_dim == subject.width, f"in_dim is {module.in_dim}, was given {subject.width}")
    names = ("out_dim", "instance_dim") if subject.kind == "aggregator" else ("out_dim",)
    for name in names:
        width = getattr(module, name)
        require(isinstance(width, int), f"{name} is {width!r}, expected an int")


def check_seeded_build(subject: Subject) -> None:
    """`build(seed=...)` promises the same weights for the same seed, and others for another."""
    first, again = subject.make(0).state_dict(), subject.make(0).state_dict()
    for name, tensor in first.items():
        require(torch.equal(tensor, again[name]), f"{name} differs between two builds with seed 0")
    draws = []
    for seed in (0, 1):
        with seeded(seed):
            subject.maker(**{**subject._given(), **subject.params})
            draws.append(float(torch.rand(())))
    require(draws[0] != draws[1], "building it sets the global seed, which only the zoo may do")


def check_other_random_states_untouched(subject: Subject) -> None:
    """The user's own random numbers must not depend on which model was built or run."""
    before = _random_states()
    module = subject.make()
    state = torch.get_rng_state()
    evaluate(subject, module)
    require(
        torch.equal(torch.get_rng_state(), state), "a run in eval mode draws torch's random numbers"
    )
    drawn = before != _random_states()
    require(not drawn, "building or running it draws random numbers of Python or numpy")


def _random_states() -> tuple[Any, str]:
    drawn: Any = numpy.random.get_state()
    return random.getstate(), f"{drawn[1].tolist()} {drawn[2:]}"


def check_eval_deterministic(subject: Subject) -> None:
    """In eval mode dropout is off and nothing is drawn: one slide has one answer."""
    module = subject.awake()
    first = _seeded_evaluation(subject, module, 1)
    check_same(_seeded_evaluation(subject, module, 2), first, "a second run", 0.01)


def _seeded_evaluation(subject: Subject, module: nn.Module, seed: int) -> dict[str, Tensor]:
    with seeded(seed):
        return evaluate(subject, module)


def check_float64_agrees(subject: Subject) -> None:
    """A part follows its dtype, and float32 rounding does not decide its answer."""
    single = evaluate(subject, subject.awake())
    double = evaluate(subject, subject.awake().double(), dtype=torch.float64)
    for name, value in double.items():
        if value.is_floating_point() and name not in ("scores", "kept"):
            require(value.dtype == torch.float64, f"in float64, {name} comes out as {value.dtype}")
    check_same(single, double, "float32 beside float64", SLOPPY)


def check_no_stray_tensors(subject: Subject) -> None:
    """A tensor that is no buffer stays behind when the model moves, and is in no weights file."""
    module = subject.make()
    evaluate(subject, module)
    if subject.kind != "encoder":
        training_scalar(subject, module)
    for path, owner in module.named_modules():
        for name, value in vars(owner).items():
            if name not in ("_parameters", "_buffers", "_modules") and _holds_tensor(value):
                raise CheckError(
                    f"{path + '.' if path else ''}{name} holds a plain tensor after a run: return "
                    "it, or self.register_buffer(name, tensor, persistent=...)"
                )


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, list | tuple | set):
        return any(isinstance(item, Tensor) for item in value)
    return isinstance(value, Tensor)


def check_inference_state_in_state_dict(subject: Subject) -> None:
    """What is published is a part of what is trained, under the same names."""
    module = subject.make()
    own, published = module.state_dict(), module.inference_state()
    extra = sorted(set(published) - set(own))
    require(not extra, f"inference_state() names {extra}, which state_dict() does not hold")
    for name, tensor in published.items():
        same = tensor.shape == own[name].shape and tensor.data_ptr() == own[name].data_ptr()
        require(
            same, f"inference_state()['{name}'] is a copy: loading weights into it changes nothing"
        )


def check_state_round_trip(subject: Subject) -> None:
    """Weights that were saved and loaded give the same answers; nothing lives outside them."""
    module = subject.awake()
    if subject.kind != "encoder":
        module.start_training(STEPS, [subject.bag()])
        training_scalar(subject, module)
        module.after_step(1, STEPS)
    expected = evaluate(subject, module)
    fresh = subject.make(seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "part.safetensors"
        write_tensors(path, module.inference_state(), {})
        load_strict(fresh.inference_state(), read_tensors(path)[0], f"the {subject.kind}")
    check_same(evaluate(subject, fresh), expected, "after saving and loading")


def check_gradients_reach_parameters(subject: Subject) -> None:
    """A parameter without a gradient is never trained; if that is meant, requires_grad is False."""
    module = subject.awake()
    for n in (N_PATCHES, 64, 8):
        bag = None if subject.kind == "head" else subject.bag(n, seed=n)
        _backward(subject, module, bag)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            require(parameter.grad is not None, f"{name} gets no gradient in training mode")
            check_finite({name: parameter.grad}, "gradients")


def _backward(subject: Subject, module: nn.Module, bag: Any = None) -> Tensor:
    with seeded(3):
        scalar = training_scalar(subject, module, bag)
        if scalar.requires_grad:
            scalar.backward()  # type: ignore[no-untyped-call]
    return scalar.detach()


def check_param_groups_cover(subject: Subject) -> None:
    """A parameter in no group is never trained, one in two is trained twice."""
    module = subject.make()
    groups = module.param_groups(1e-3)
    listed = [id(p) for group in groups for p in group["params"]]
    for name, parameter in module.named_parameters():
        times = listed.count(id(parameter))
        if parameter.requires_grad:
            require(times == 1, f"{name} is in {times} parameter groups, expected exactly 1")
        else:
            require(times == 0, f"{name} is frozen and yet in a parameter group")
    own = {id(p) for p in module.parameters()}
    require(
        set(listed) <= own, "a parameter group holds tensors that are no parameters of this part"
    )
    for group in groups:
        if group["params"]:
            rate = group.get("lr")
            require(
                rate is not None and rate > 0, f"a parameter group has lr {rate!r}, expected > 0"
            )


def _train(subject: Subject, module: nn.Module, steps: range) -> None:
    """Steps of gradient descent of bounded length, with the calls that the trainer makes."""
    groups: list[dict[str, Any]] = module.param_groups(1e-3)  # type: ignore[operator]
    for step in steps:
        module.zero_grad()
        _backward(subject, module)
        with torch.no_grad():
            for parameter in (p for group in groups for p in group["params"]):
                if parameter.grad is not None:
                    parameter.sub_(1e-3 * parameter.grad / (parameter.grad.norm() + 1e-12))
        module.after_step(step, STEPS)  # type: ignore[operator]


def check_trains_two_steps(subject: Subject) -> None:
    """The trainer calls start_training once, and after_step after every step, in training mode."""
    module = subject.make()
    module.train()
    module.start_training(STEPS, [subject.bag()])
    _train(subject, module, range(1, 3))
    require(module.training, "after_step leaves the part in eval mode")
    check_finite(evaluate(subject, module), "after two steps")


def check_resumes(subject: Subject) -> None:
    """A run that was interrupted goes on from state_dict() alone, without start_training."""
    module, resumed = subject.make(0), subject.make(1)
    module.start_training(STEPS, [subject.bag()])
    _train(subject, module, range(1, 3))
    resumed.load_state_dict(module.state_dict())
    for part in (module, resumed):
        _train(subject, part, range(3, 5))
    numbers = [{"training": _backward(subject, part)} for part in (module, resumed)]
    check_same(numbers[1], numbers[0], "a resumed run in training mode")
    check_same(evaluate(subject, resumed), evaluate(subject, module), "a resumed run")


def check_exceptions_exist(subject: Subject) -> None:
    """A declared exception names a check, and says why."""
    from wsizoo.testing.conformance_suite import checks

    known = {check.name for check in checks(subject.kind)}
    for name, reason in getattr(subject.cls, "conformance_exceptions", {}).items():
        require(
            name in known, f"conformance_exceptions names '{name}', which is no check of a part"
        )
        require(bool(str(reason).strip()), f"conformance_exceptions['{name}'] gives no reason")


ANY = (
    check_base_class,
    check_exceptions_exist,
    check_seeded_build,
    check_other_random_states_untouched,
    check_eval_deterministic,
    check_no_stray_tensors,
    check_inference_state_in_state_dict,
    check_state_round_trip,
)
TRAINED = (
    check_float64_agrees,
    check_gradients_reach_parameters,
    check_param_groups_cover,
    check_trains_two_steps,
    check_resumes,
)
WIDTHS = (check_stated_widths,)
