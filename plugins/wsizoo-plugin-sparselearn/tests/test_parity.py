"""Everything against published formulas and operators, as independent programs computed them."""

import runpy
from pathlib import Path

from wsizoo.testing import parity

READERS = {
    subject: reader
    for path in sorted(Path(__file__).parent.glob("readers_*.py"))
    for subject, reader in runpy.run_path(str(path))["READERS"].items()
}


@parity("sparselearn", READERS)
def test_it_computes_what_the_references_compute(check):
    check()
