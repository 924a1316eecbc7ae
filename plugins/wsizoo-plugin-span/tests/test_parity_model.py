"""SPAN's networks, layers and pieces against the numbers of the published code."""

import runpy
from pathlib import Path

import pytest

from wsizoo.ops import use_backend
from wsizoo.testing import compare, parity_cases

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("readers_model.py", "readers_layers.py")
    for subject, reader in runpy.run_path(str(FOLDER / name))["READERS"].items()
}
CASES = [case for case in parity_cases("span") if case.subject in READERS]
NONE = pytest.param(None, marks=pytest.mark.skip(reason="no parity cases: set WSIZOO_PARITY"))


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES or [NONE], ids=lambda case: getattr(case, "name", "none"))
def test_networks_compute_what_the_published_code_computes(case, backend):
    with use_backend(backend):
        compare(case, READERS[case.subject](case))
