"""Every method against what the published implementations computed: outputs, losses, gradients."""

import runpy
from pathlib import Path

from wsizoo.testing import parity

READERS = {
    subject: reader
    for file in sorted(Path(__file__).parent.glob("readers_*.py"))
    for subject, reader in runpy.run_path(str(file))["READERS"].items()
}


@parity("mil", READERS)
def test_it_computes_what_the_references_compute(check):
    check()
