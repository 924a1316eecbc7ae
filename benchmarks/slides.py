"""Slides: reading, tissue, the built-in encoder, feature files, and cohorts."""

import tempfile
from pathlib import Path

from benchmarks import _cohort, _encoder, _files, _probe, _reading
from benchmarks._measure import load_now


def run() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"  {load_now()} before it began")
        for part in (_reading.run, _encoder.run, _probe.run, _files.run, _cohort.run):
            part(folder)
