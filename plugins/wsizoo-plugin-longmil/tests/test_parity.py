"""Everything against the published code and dense references, on the fast paths and without."""

import runpy
from pathlib import Path

import pytest

from wsizoo.ops import use_backend
from wsizoo.testing import parity

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("model", "ops")
    for subject, reader in runpy.run_path(str(FOLDER / f"readers_{name}.py"))["READERS"].items()
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@parity("longmil", READERS)
def test_it_computes_what_the_references_compute(check, backend):
    with use_backend(backend):
        check()
