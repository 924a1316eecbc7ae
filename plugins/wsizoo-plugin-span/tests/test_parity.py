"""Everything against the numbers of the published code, on the fast paths and on the reference."""

import runpy
from pathlib import Path

import pytest

from wsizoo.ops import use_backend
from wsizoo.testing import parity

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("model", "layers", "conv", "data")
    for subject, reader in runpy.run_path(str(FOLDER / f"readers_{name}.py"))["READERS"].items()
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@parity("span", READERS)
def test_it_computes_what_the_published_code_computes(check, backend):
    with use_backend(backend):
        check()
