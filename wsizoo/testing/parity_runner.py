"""Parity cases: what a published implementation computed, compared tensor by tensor.

In a plugin's tests:

    from wsizoo.testing import parity

    @parity("span", {"layer": read_layer, is_small_model: read_model})
    def test_parity(check):
        check()

A reader takes a `Case` and returns a tensor for each name in its tolerance. It claims cases by
their exact subject, or by a predicate over their meta. A case that no reader claims fails.

A case is a folder `<system>/<case>/` with `meta.json`, `io.safetensors` (`in.*`, `out.*`, `grad.*`)
and maybe `weights.safetensors`, in float32 on a CPU. Rule of a tolerance, element by element:
|x - ref| <= atol + rtol |ref| + of_max max|ref|, or "exact".
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.weights import read_tensors

VARIABLE = "WSIZOO_PARITY"
META, IO, WEIGHTS = "meta.json", "io.safetensors", "weights.safetensors"
FORMAT = 2
EXACT = "exact"
RULE = frozenset(("atol", "rtol", "of_max"))

Reader = Callable[["Case"], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """One parity case.

    Args:
        path: its folder. system: e.g. `"span"`. name: folder name. meta: all of meta.json.
    """

    path: Path
    system: str
    name: str
    meta: Mapping[str, Any]

    @property
    def subject(self) -> str:
        """What computed it: a model, an op, a layer, a training run."""
        return str(self.meta["subject"])

    @property
    def config(self) -> Mapping[str, Any]:
        config: Mapping[str, Any] = self.meta.get("config") or {}
        return config

    @property
    def tolerance(self) -> Mapping[str, Any]:
        """For each tensor to be compared: "exact", or atol, rtol, of_max."""
        tolerance: Mapping[str, Any] = self.meta["tolerance"]
        return tolerance

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers under the reference's own names; empty where there are none."""
        path = self.path / WEIGHTS
        return read_tensors(path)[0] if path.is_file() else {}

    def inputs(self) -> dict[str, Tensor]:
        """The tensors `in.*`, without the prefix."""
        return self._io("in.")

    def outputs(self) -> dict[str, Tensor]:
        """What is to be reproduced: `out.*` and `grad.*`, with their prefixes."""
        return {k: v for k, v in self._io("").items() if k.startswith(("out.", "grad."))}

    def given(self) -> dict[str, Tensor]:
        """Outputs that ties make implementation-defined; a reader takes them as inputs."""
        outputs = self.outputs()
        return {name: outputs[name] for name in self.meta.get("given") or ()}

    def _io(self, prefix: str) -> dict[str, Tensor]:
        tensors = read_tensors(self.path / IO)[0]
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def parity_cases(system: str, folder: Path | str | None = None) -> list[Case]:
    """All cases of one system, sorted by name; a copy of a case counts once.

    Args:
        folder: where cases lie; default as `parity_folders`.

    Raises:
        DataError: a meta.json that is malformed, or two different cases of one name.
    """
    folders = parity_folders() if folder is None else [Path(folder)]
    cases: dict[str, Case] = {}
    for path in sorted(p for f in folders for p in f.glob(f"**/{META}")):
        case = _read_case(path)
        if case.system != system:
            continue
        if case.name in cases and cases[case.name].meta != case.meta:
            raise DataError(
                f"{case.path} and {cases[case.name].path} are both {system}/{case.name}"
            )
        cases[case.name] = case
    return [cases[name] for name in sorted(cases)]


def parity_folders(start: Path | None = None) -> list[Path]:
    """Where parity cases lie: the variable WSIZOO_PARITY (folders joined as in PATH), else in the
    checkout that holds `start`: tests/parity, and ../shared/parity beside it.

    Args:
        start: default the working directory.
    """
    if VARIABLE in os.environ:
        return [Path(entry) for entry in os.environ[VARIABLE].split(os.pathsep) if entry]
    start = (start or Path.cwd()).resolve()
    for root in (start, *start.parents):
        if (root / "registry.yaml").is_file() and (root / "wsizoo").is_dir():
            folders = (root / "tests" / "parity", root.parent / "shared" / "parity")
            return [folder for folder in folders if folder.is_dir()]
    return []


def _read_case(path: Path) -> Case:
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is not valid JSON: {error}") from error
    lacking = {"format", "system", "case", "subject", "tolerance"} - set(meta)
    if lacking:
        raise DataError(f"{path} lacks {', '.join(sorted(lacking))}")
    if meta["format"] != FORMAT:
        raise DataError(f"{path} has format {meta['format']!r}, expected {FORMAT}")
    if not meta["tolerance"]:
        raise DataError(f"{path} names no tensor to compare in its tolerance")
    for name, rule in meta["tolerance"].items():
        numbers = isinstance(rule, dict) and rule and set(rule) <= RULE
        if rule != EXACT and not numbers:
            raise DataError(
                f"{path}: tolerance of {name} is {rule!r}, expected 'exact' or {set(RULE)}"
            )
    return Case(path.parent, str(meta["system"]), str(meta["case"]), meta)


def compare(case: Case, results: Mapping[str, Tensor]) -> None:
    """Compare what a reader computed with what the reference computed.

    Args:
        results: a tensor for each name of the tolerance, `out.*` and `grad.*`; others are ignored.

    Raises:
        AssertionError: with a table of every tensor that is missing or off.
    """
    outputs, lines = case.outputs(), []
    for name, rule in case.tolerance.items():
        if name not in outputs:
            lines.append((name, "the case itself does not hold it", ""))
        elif name not in results:
            lines.append((name, "missing", f"returned: {', '.join(sorted(results)) or 'nothing'}"))
        elif line := _difference(results[name], outputs[name], rule):
            lines.append((name, *line))
    if lines:
        table = "\n".join(f"  {name:<32} {what:<44} {allowed}" for name, what, allowed in lines)
        head = f"  {'tensor':<32} {'worst deviation':<44} allowed there"
        of = f"{len(lines)} of {len(case.tolerance)} tensors"
        raise AssertionError(
            f"{case.system}/{case.name} ({case.subject}): {of} differ\n{head}\n{table}"
        )


def _difference(got: Tensor, reference: Tensor, rule: Any) -> tuple[str, str] | None:
    """The worst deviation and what was allowed there, or None."""
    got = torch.as_tensor(got).detach().cpu()
    if got.shape != reference.shape:
        return f"shape {tuple(got.shape)}", f"shape {tuple(reference.shape)}"
    if not got.numel():
        return None
    x, ref = got.double(), reference.double()
    size = torch.where(torch.isfinite(ref), ref, 0.0).abs()
    number = {} if rule == EXACT else rule
    limit = number.get("atol", 0.0) + number.get("rtol", 0.0) * size
    limit = limit + number.get("of_max", 0.0) * size.max()
    # NaN where the reference has NaN and infinities of one sign agree; nothing else does with them.
    agree = (x == ref) | (torch.isnan(x) & torch.isnan(ref))
    off = torch.where(agree, 0.0, torch.nan_to_num((x - ref).abs(), nan=torch.inf))
    if rule == EXACT and not got.is_floating_point() and not reference.is_floating_point():
        off = (got.long() - reference.long()).abs().double()
    if bool((off <= limit).all()):
        return None
    excess = torch.nan_to_num(off - limit, posinf=torch.finfo(torch.float64).max)
    at = int(excess.flatten().argmax())
    wrong = int((off > limit).sum())
    position = tuple(int(i) for i in torch.unravel_index(torch.tensor(at), got.shape))
    worst = float(off.flatten()[at])
    allowed = EXACT if rule == EXACT else f"{float(limit.flatten()[at]):.3g}"
    return f"{worst:.3g} at {position}, {wrong} of {off.numel()}", allowed


def find_reader(case: Case, readers: Mapping[Any, Reader]) -> Reader:
    """The one reader that claims this case.

    Raises:
        AssertionError: none claims it, or several do. A claim by exact subject beats predicates.
    """
    if case.subject in readers:
        return readers[case.subject]
    willing = [reader for claim, reader in readers.items() if callable(claim) and claim(case.meta)]
    if len(willing) == 1:
        return willing[0]
    subjects = ", ".join(sorted(claim for claim in readers if isinstance(claim, str)))
    problem = "no reader claims" if not willing else f"{len(willing)} readers claim"
    raise AssertionError(
        f"{case.system}/{case.name}: {problem} subject '{case.subject}'. Subjects with a reader: "
        f"{subjects or 'none'}"
    )


@dataclass(frozen=True)
class BoundCase:
    """A case with the readers that may claim it; calling it compares."""

    case: Case
    readers: Mapping[Any, Reader]

    def __call__(self) -> None:
        compare(self.case, find_reader(self.case, self.readers)(self.case))


def parity(
    system: str, readers: Mapping[Any, Reader], folder: Path | str | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """A pytest decorator: the test runs once a case of this system, and takes it as `check`.

    Ids are `<system>/<case>`, the marker is `parity`. Where no cases lie at all, there is one test,
    skipped with the reason.

    Args:
        readers: claim (a subject, or a predicate over meta) -> function of a case.
        folder: where cases lie; default as `parity_folders`.
    """
    import pytest

    bound = [BoundCase(case, readers) for case in parity_cases(system, folder)]
    params: Sequence[Any] = [pytest.param(b, id=f"{system}/{b.case.name}") for b in bound]
    if not bound:
        reason = f"no parity cases of '{system}' here: set {VARIABLE} to their folder"
        skipped = pytest.mark.skip(reason=reason)
        params = [pytest.param(None, id=f"{system}/no-cases-here", marks=skipped)]

    def decorate(test: Callable[..., Any]) -> Any:
        return pytest.mark.parity(pytest.mark.parametrize("check", params)(test))

    return decorate
