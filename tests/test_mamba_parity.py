"""The state-space ops and blocks against what their published references computed."""

import pytest
import torch
from torch import Tensor, nn

from wsizoo.mamba import MambaBlock, VimBlock
from wsizoo.ops import causal_conv1d, ops, selective_scan, use_backend
from wsizoo.testing import parity_cases
from wsizoo.testing.parity_runner import Case, compare

BACKENDS = ["reference", *(backend.name for backend in ops()["selective_scan"].backends())]


def read_scan(case: Case) -> dict[str, Tensor]:
    given, shape, offsets = leaves(case), case.inputs()["u"].shape, offsets_of(case)
    packed = {name: rows(t) if t.ndim == 3 else t for name, t in given.items()}
    y, last = selective_scan(
        *(packed[name] for name in ("u", "delta", "A", "B", "C")),
        *(packed.get(name) for name in ("D", "z", "delta_bias")),
        case.config["delta_softplus"],
        offsets,
    )
    return {"out.last_state": last, **slopes_of(case, batch_of(y, shape), given)}


def read_conv(case: Case) -> dict[str, Tensor]:
    given, shape, offsets = leaves(case), case.inputs()["x"].shape, offsets_of(case)
    activation = case.config["activation"] or "none"
    x, bias = rows(given["x"]), given.get("bias")
    y = causal_conv1d(x, given["weight"], bias, activation, offsets)
    return slopes_of(case, batch_of(y, shape), given)


def read_mamba1(case: Case) -> dict[str, Tensor]:
    return read_block(case, MambaBlock(*sizes(case), case.config["dt_rank"]))


def read_vim(case: Case) -> dict[str, Tensor]:
    config = case.config
    more = {"divide_out": config["if_divide_out"], "layer_scale": config["init_layer_scale"]}
    return read_block(case, VimBlock(*sizes(case), config["dt_rank"], **more))


READERS = {"scan": read_scan, "conv": read_conv, "mamba1": read_mamba1, "vimv2": read_vim}
CASES = [case for case in parity_cases("mamba") if case.subject in READERS]


@pytest.mark.parity
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.system}/{case.name}")
def test_it_computes_what_the_published_reference_computes(case: Case, backend: str) -> None:
    scan = ops()["selective_scan"]
    found = next((b for b in scan.backends() if b.name == backend), None)
    if found is not None and (reason := scan.why_not(found)) is not None:
        pytest.skip(reason)
    with use_backend(backend):
        compare(case, READERS[case.subject](case))


def test_there_are_cases_of_every_subject() -> None:
    assert {case.subject for case in CASES} == set(READERS)


def leaves(case: Case) -> dict[str, Tensor]:
    """The inputs of a case, to be differentiated."""
    given = {name: t.requires_grad_() for name, t in case.inputs().items()}
    del given["cotangent"]
    return given


def sizes(case: Case) -> list[int]:
    return [case.config[name] for name in ("d_model", "d_state", "d_conv", "expand")]


def offsets_of(case: Case) -> Tensor:
    batch, length = (case.config[name] for name in ("batch", "length"))
    return torch.arange(batch + 1) * length


def rows(t: Tensor) -> Tensor:
    """(B, E, L) -> (B L, E)."""
    return t.transpose(1, 2).flatten(0, 1)


def batch_of(y: Tensor, shape: torch.Size) -> Tensor:
    """(B L, E) -> (B, E, L)."""
    return y.view(shape[0], shape[2], shape[1]).transpose(1, 2)


def read_block(case: Case, block: nn.Module) -> dict[str, Tensor]:
    block.load_state_dict(case.weights(), strict=True)
    given = leaves(case)
    x = given["x"]
    y: Tensor = block(x.flatten(0, 1), offsets_of(case)).view_as(x)
    return slopes_of(case, y, {**dict(block.named_parameters()), **given})


def slopes_of(case: Case, y: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    (y * case.inputs()["cotangent"]).sum().backward()
    return {"out.y": y} | {f"grad.{n}": t.grad for n, t in given.items() if t.grad is not None}
