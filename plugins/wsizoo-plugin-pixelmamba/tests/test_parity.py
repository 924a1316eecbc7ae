"""Everything against the numbers of published operators and of a plain reference of the paper."""

import runpy
from pathlib import Path

import pytest

from wsizoo.ops import use_backend
from wsizoo.testing import parity_cases
from wsizoo.testing.parity_runner import compare, find_reader

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("parts", "nets")
    for subject, reader in runpy.run_path(str(FOLDER / f"readers_{name}.py"))["READERS"].items()
}
CORES = {"scan", "conv", "mamba1", "vimv2"}  # read by the core's own tests
CASES = [case for case in parity_cases("mamba") if case.subject not in CORES]


@pytest.mark.parity
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.system}/{case.name}")
def test_it_computes_what_the_reference_computes(case, backend):
    with use_backend(backend):
        compare(case, find_reader(case, READERS)(case))


@pytest.mark.skipif(not CASES, reason="no parity cases of 'mamba' here: set WSIZOO_PARITY")
def test_there_are_cases_of_every_subject():
    assert {case.subject for case in CASES} == set(READERS)
