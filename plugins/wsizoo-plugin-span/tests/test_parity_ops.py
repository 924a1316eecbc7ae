"""Sparse convolutions against the numbers of the published ones, on the reference and fast."""

import runpy
from pathlib import Path

import pytest

from wsizoo.ops import use_backend
from wsizoo.testing import compare, parity_cases

READERS = runpy.run_path(str(Path(__file__).with_name("readers_conv.py")))["READERS"]
CASES = {case.subject: case for case in parity_cases("span") if case.subject in READERS}


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["reference", "gather"])
@pytest.mark.parametrize("subject", READERS)
def test_ops_compute_what_the_published_code_computes(subject, backend):
    if not CASES:
        pytest.skip("no parity cases of 'span' here: set WSIZOO_PARITY to their folder")
    with use_backend(backend):
        compare(CASES[subject], READERS[subject](CASES[subject]))
