"""Everything against the numbers of published operators and of a plain reference of the paper."""

import runpy
from pathlib import Path

from wsizoo.testing import parity

FOLDER = Path(__file__).parent
READERS = {
    subject: reader
    for name in ("parts",)
    for subject, reader in runpy.run_path(str(FOLDER / f"readers_{name}.py"))["READERS"].items()
}


@parity("mamba", READERS)
def test_it_computes_what_the_reference_computes(check):
    check()
