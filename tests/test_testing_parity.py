import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from wsizoo.errors import DataError
from wsizoo.testing import Case, compare, parity, parity_cases
from wsizoo.testing.parity_runner import BoundCase, find_reader, parity_folders
from wsizoo.weights import write_tensors

VALUES = torch.tensor([[1.0, -2.0], [0.5, 100.0]])


def write_case(
    folder: Path,
    name: str = "one",
    subject: str = "layer",
    tolerance: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Tensor] | None = None,
    **more: Any,
) -> Path:
    path = folder / "made" / name
    path.mkdir(parents=True)
    meta = {
        "format": 2,
        "system": "made",
        "case": name,
        "subject": subject,
        "tolerance": tolerance or {"out.y": {"atol": 1e-5, "rtol": 1e-5}},
        **more,
    }
    (path / "meta.json").write_text(json.dumps(meta))
    write_tensors(path / "io.safetensors", tensors or {"in.x": VALUES, "out.y": 2 * VALUES}, {})
    return path


def one_case(folder: Path, **settings: Any) -> Case:
    write_case(folder, **settings)
    (case,) = parity_cases("made", folder)
    return case


def double(case: Case) -> dict[str, Tensor]:
    return {"out.y": 2 * case.inputs()["x"]}


def test_a_case_gives_inputs_without_prefix_outputs_with_it_and_weights(tmp_path: Path) -> None:
    tensors = {"in.x": VALUES, "out.y": VALUES, "grad.x": VALUES, "note": VALUES}
    path = write_case(tmp_path, tensors=tensors, config={"k": 3}, given=["out.y"])
    write_tensors(path / "weights.safetensors", {"layer.weight": VALUES}, {})
    (case,) = parity_cases("made", tmp_path)
    assert (case.system, case.name, case.subject, case.config) == ("made", "one", "layer", {"k": 3})
    assert set(case.inputs()) == {"x"}
    assert set(case.outputs()) == {"out.y", "grad.x"}
    assert set(case.given()) == {"out.y"}
    assert torch.equal(case.weights()["layer.weight"], VALUES)


def test_a_case_without_parameters_has_no_weights(tmp_path: Path) -> None:
    assert one_case(tmp_path).weights() == {}


def test_only_cases_of_the_system_are_found_sorted_at_any_depth(tmp_path: Path) -> None:
    write_case(tmp_path / "a" / "b", "two")
    write_case(tmp_path, "one")
    assert [case.name for case in parity_cases("made", tmp_path)] == ["one", "two"]
    assert parity_cases("other", tmp_path) == []


def test_a_copy_of_a_case_counts_once(tmp_path: Path) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b")
    assert len(parity_cases("made", tmp_path)) == 1


def test_two_different_cases_of_one_name_are_an_error(tmp_path: Path) -> None:
    write_case(tmp_path / "a")
    write_case(tmp_path / "b", subject="another")
    with pytest.raises(DataError, match="are both made/one"):
        parity_cases("made", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 3}, "has format 3, expected 2"),
        ({"tolerance": {}}, "names no tensor to compare"),
        ({"tolerance": {"out.y": {"atoll": 1}}}, "tolerance of out.y is"),
        ({"tolerance": {"out.y": {}}}, "tolerance of out.y is"),
    ],
)
def test_a_malformed_meta_is_an_error(tmp_path: Path, change: Any, message: str) -> None:
    path = write_case(tmp_path) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=message):
        parity_cases("made", tmp_path)


def test_a_meta_without_subject_or_that_is_no_json_is_an_error(tmp_path: Path) -> None:
    path = write_case(tmp_path) / "meta.json"
    path.write_text('{"format": 2, "system": "made", "case": "one", "tolerance": {}}')
    with pytest.raises(DataError, match="lacks subject"):
        parity_cases("made", tmp_path)
    path.write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        parity_cases("made", tmp_path)


def test_values_within_the_tolerance_agree(tmp_path: Path) -> None:
    case = one_case(tmp_path)
    compare(case, {"out.y": 2 * VALUES + 1e-6, "out.unasked": torch.zeros(1)})


def test_a_wrong_value_fails_with_where_and_how_much_is_allowed(tmp_path: Path) -> None:
    case = one_case(tmp_path, tolerance={"out.y": {"atol": 1e-3, "rtol": 1e-3}})
    wrong = 2 * VALUES + torch.tensor([[0.0, 0.01], [0.0, 0.1]])
    with pytest.raises(AssertionError, match=r"out.y .*0.01 at \(0, 1\), 1 of 4 +0.005"):
        compare(case, {"out.y": wrong})


def test_of_max_is_relative_to_the_largest_reference_value(tmp_path: Path) -> None:
    case = one_case(tmp_path, tolerance={"out.y": {"of_max": 1e-3}})
    compare(case, {"out.y": 2 * VALUES + 0.19})
    with pytest.raises(AssertionError, match="4 of 4"):
        compare(case, {"out.y": 2 * VALUES + 0.21})


def test_exact_allows_nothing_and_compares_large_integers_exactly(tmp_path: Path) -> None:
    large = torch.tensor([2**62, 5])
    case = one_case(tmp_path, tolerance={"out.i": "exact"}, tensors={"out.i": large})
    compare(case, {"out.i": large})
    with pytest.raises(AssertionError, match=r"1 of 2 +exact"):
        compare(case, {"out.i": large + torch.tensor([1, 0])})


def test_exact_floats_may_not_differ_in_the_last_bit(tmp_path: Path) -> None:
    case = one_case(tmp_path, tolerance={"out.y": "exact"})
    compare(case, {"out.y": 2 * VALUES})
    with pytest.raises(AssertionError, match="4 of 4"):
        compare(case, {"out.y": torch.nextafter(2 * VALUES, torch.tensor(1e9))})


def test_a_missing_tensor_fails_and_says_what_was_returned(tmp_path: Path) -> None:
    tensors = {"out.y": VALUES, "grad.x": VALUES}
    tolerance = {"out.y": "exact", "grad.x": "exact"}
    case = one_case(tmp_path, tensors=tensors, tolerance=tolerance)
    with pytest.raises(AssertionError, match=r"grad.x +missing +returned: out.y"):
        compare(case, {"out.y": VALUES})


def test_a_tolerance_for_a_tensor_that_the_case_lacks_fails(tmp_path: Path) -> None:
    case = one_case(tmp_path, tolerance={"out.z": "exact"})
    with pytest.raises(AssertionError, match="the case itself does not hold it"):
        compare(case, {"out.z": VALUES})


def test_another_shape_fails_even_where_it_broadcasts(tmp_path: Path) -> None:
    case = one_case(tmp_path, tensors={"out.y": torch.ones(2, 2)})
    with pytest.raises(AssertionError, match=r"shape \(2,\) +shape \(2, 2\)"):
        compare(case, {"out.y": torch.ones(2)})


def test_nan_and_infinity_agree_only_with_themselves(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    reference = torch.tensor([nan, inf, -inf, 1.0])
    loose = {"out.y": {"atol": 10.0, "of_max": 1.0}}
    case = one_case(tmp_path, tolerance=loose, tensors={"out.y": reference})
    compare(case, {"out.y": reference.clone()})
    for wrong in ([0.0, inf, -inf, 1.0], [nan, -inf, -inf, 1.0], [nan, inf, -inf, nan]):
        with pytest.raises(AssertionError, match="1 of 4"):
            compare(case, {"out.y": torch.tensor(wrong)})


def test_results_with_gradients_or_in_another_precision_are_compared(tmp_path: Path) -> None:
    compare(one_case(tmp_path), {"out.y": (2 * VALUES).double().requires_grad_()})


def test_empty_tensors_agree(tmp_path: Path) -> None:
    case = one_case(tmp_path, tensors={"out.y": torch.zeros(0, 3)})
    compare(case, {"out.y": torch.zeros(0, 3)})


def test_a_reader_claims_by_exact_subject_before_predicates(tmp_path: Path) -> None:
    case = one_case(tmp_path)
    assert find_reader(case, {"layer": double, lambda meta: True: lambda case: {}}) is double


def test_a_reader_claims_by_a_predicate_over_meta(tmp_path: Path) -> None:
    case = one_case(tmp_path, subject="model", task="survival")
    assert find_reader(case, {lambda meta: meta["task"] == "survival": double}) is double


def test_an_unclaimed_case_fails_when_it_runs(tmp_path: Path) -> None:
    check = BoundCase(one_case(tmp_path, subject="model.new"), {"layer": double})
    expected = "no reader claims subject 'model.new'. Subjects with a reader: layer"
    with pytest.raises(AssertionError, match=expected):
        check()


def test_a_case_that_two_predicates_claim_fails(tmp_path: Path) -> None:
    readers = {lambda meta: True: double, lambda meta: len(meta) > 1: double}
    with pytest.raises(AssertionError, match="2 readers claim"):
        find_reader(one_case(tmp_path), readers)


def test_folders_come_from_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WSIZOO_PARITY", str(tmp_path))
    assert parity_folders() == [tmp_path]
    monkeypatch.setenv("WSIZOO_PARITY", "")
    assert parity_folders() == []


def test_folders_are_found_in_the_checkout_and_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WSIZOO_PARITY", raising=False)
    root = tmp_path / "checkout"
    inside, beside = root / "tests" / "parity", tmp_path / "shared" / "parity"
    for folder in (root / "wsizoo", root / "plugins" / "p" / "tests", inside, beside):
        folder.mkdir(parents=True)
    (root / "registry.yaml").write_text("")
    assert parity_folders(root / "plugins" / "p" / "tests") == [inside, beside]
    assert parity_folders(tmp_path) == []


def marks_of(decorator: Any) -> dict[str, Any]:
    def test(check: Any) -> None:
        check()

    return {mark.name: mark for mark in decorator(test).pytestmark}


def test_the_decorator_makes_one_marked_test_a_case(tmp_path: Path) -> None:
    write_case(tmp_path, "one")
    write_case(tmp_path, "two", subject="unclaimed")
    marks = marks_of(parity("made", {"layer": double}, tmp_path))
    params = marks["parametrize"].args[1]
    assert [param.id for param in params] == ["made/one", "made/two"]
    assert "parity" in marks
    params[0].values[0]()
    with pytest.raises(AssertionError, match="no reader claims"):
        params[1].values[0]()


def test_without_any_cases_there_is_one_test_skipped_with_a_reason(tmp_path: Path) -> None:
    marks = marks_of(parity("made", {"layer": double}, tmp_path))
    (param,) = marks["parametrize"].args[1]
    assert param.id == "made/no-cases-here"
    (skip,) = param.marks
    assert skip.kwargs["reason"].startswith("no parity cases of 'made' here: set WSIZOO_PARITY")
