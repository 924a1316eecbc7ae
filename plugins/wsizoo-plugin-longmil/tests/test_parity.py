"""Everything against the published code and dense references, on the fast paths and without."""

import runpy
from pathlib import Path

import pytest
from safetensors.torch import save_file

from wsizoo.errors import DataError
from wsizoo.ops import use_backend
from wsizoo.testing import Case, parity

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("model", "ops")
    for subject, reader in runpy.run_path(str(FOLDER / f"readers_{name}.py"))["READERS"].items()
}


WEIGHTS_OF = runpy.run_path(str(FOLDER / "readers_model.py"))["weights_of"]


@pytest.mark.parametrize(
    ("config", "file", "message"),
    [
        ({}, False, "v2_x has no weights.safetensors, and its config no seed to draw by"),
        ({"seed": 3}, True, "v2_x: its weights.safetensors holds no tensors"),
    ],
)
def test_weights_are_not_drawn_where_a_case_is_damaged(tmp_path, config, file, message):
    case = Case(tmp_path, "longmil", "v2_x", {"subject": "v2", "config": config})
    if file:
        save_file({}, tmp_path / "weights.safetensors")
    with pytest.raises(DataError, match=message):
        WEIGHTS_OF(case)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@parity("longmil", READERS)
def test_it_computes_what_the_references_compute(check, backend):
    with use_backend(backend):
        check()
