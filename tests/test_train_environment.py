"""What a run tells of its machine."""

import sys

import pytest
import torch

from wsizoo.train.environment import PROCESS, forget_peaks, peaks


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot forget a peak")
def test_a_run_does_not_inherit_the_peak_memory_of_an_earlier_one() -> None:
    if not (PROCESS / "clear_refs").exists():
        pytest.skip("this kernel does not forget a peak")
    held = torch.ones(64, 1024, 1024)  # 256 MiB
    earlier = peaks()["peak_mb"]
    del held
    forget_peaks()
    assert peaks()["peak_mb"] < earlier - 200
