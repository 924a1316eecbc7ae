"""The memory that is planned, against the tensors that are alive."""

import functools
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wsizoo_plugin_pixelmamba.fusion import fuse
from wsizoo_plugin_pixelmamba.memory import LIBRARIES, peak_bytes, piece_of, process_bytes
from wsizoo_plugin_pixelmamba.model import PixelMamba
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.settings import Settings

from wsizoo.errors import BagError
from wsizoo.ops import use_backend


class Alive(TorchDispatchMode):
    """Bytes of tensors that were made within it and are alive, and the most there were."""

    def __init__(self, others):
        super().__init__()
        self.now = self.peak = 0
        self.sizes = {t.untyped_storage()._cdata: 0 for t in others}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor.untyped_storage())
        return out

    def add(self, storage):
        key = storage._cdata
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.drop, key)

    def drop(self, key):
        self.now -= self.sizes.pop(key)


def most_alive(settings, n, edge, training):
    network = Network(settings)
    regions = torch.randn(1, n, 3, edge, edge)
    with torch.set_grad_enabled(training), Alive([*network.parameters(), regions]) as alive:
        slide = network(regions).slide
        if training:
            slide.sum().backward()
    slopes = 4 * sum(p.numel() for p in network.parameters()) if training else 0
    return alive.peak - slopes


SLIDES = {
    "one region": ({"size": "tiny"}, 1, 96),
    "a few": ({"size": "tiny"}, 4, 64),
    "wide layers": ({"layers": ["h-cat", "v-cat"] * 4}, 2, 64),
    "many, in pieces": ({"size": "tiny", "working_mb": 2}, 12, 64),
    "without fusion": ({"size": "tiny", "working_mb": 2, "alpha": 0.0}, 8, 64),
    "a learned CLS": ({"size": "tiny", "working_mb": 2, "cls_mode": "linear"}, 12, 64),
    "all is kept": ({"size": "tiny", "recompute": False}, 3, 64),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize(("options", "n", "edge"), SLIDES.values(), ids=SLIDES)
def test_the_plan_is_right_within_a_quarter(options, n, edge, training):
    pytest.importorskip("numba", reason="the plan is for scans that keep nothing: numba's")
    settings = Settings(**options)
    planned = peak_bytes(settings, n, (edge, edge), training)
    with use_backend("numba"):
        found = most_alive(settings, n, edge, training)
    assert 0.8 < found / planned < 1.25


def test_very_many_regions_are_compared_in_parts(monkeypatch):
    monkeypatch.setattr("wsizoo_plugin_pixelmamba.fusion.AT_ONCE", 1 << 16)
    tokens, pairs = torch.randn(2000, 2, 3), 1000 * 1000
    with Alive([tokens]) as alive:
        fuse(tokens, 100)
    assert alive.peak < pairs  # a float, a flag and a number of each pair would be nine bytes


def test_pieces_fit_into_the_memory_that_is_given():
    for size in ("6m", "21m"):
        settings = Settings(size=size)
        half = Settings(size=size, working_mb=settings.working_mb // 2)
        for width in settings.widths:
            assert piece_of(half, width) in (piece_of(settings, width) // 2, 64)


def test_pieces_are_larger_on_a_gpu():
    settings = Settings()
    eightfold = Settings(working_mb=8 * settings.working_mb)
    for width in settings.widths:
        assert piece_of(settings, width, "cuda") == piece_of(eightfold, width)


def test_a_whole_slide_needs_a_few_gigabytes_where_plain_autograd_needs_dozens():
    plain = Settings(recompute=False)
    assert peak_bytes(Settings(), 300) < 4e9 < 30e9 < peak_bytes(plain, 300)
    assert peak_bytes(Settings(), 300, training=False) < 1.5e9


@pytest.mark.parametrize("training", [True, False])
def test_the_aggregator_tells_what_its_process_takes(training):
    settings = Settings(size="tiny", alpha=0.4)
    made = PixelMamba(3, size="tiny", alpha=0.4)
    told = made.peak_bytes(900, 32, training)
    assert told == process_bytes(settings, 900, (32, 32), training)
    optimised = 3 * 4 * sum(p.numel() for p in made.parameters()) if training else 0
    beside = LIBRARIES + optimised + 4 * 900 * 3 * 32 * 32  # and the normalised pixels
    holes = told - beside - peak_bytes(settings, 900, (32, 32), training)
    room = settings.working_mb * 1e6 if training else 0  # of a slide that is run in pieces
    assert 0.99 * room <= holes <= room


def test_a_plan_for_regions_that_do_not_halve_is_refused():
    with pytest.raises(BagError, match=r"regions are 100 x 100 px .* must be multiples of that"):
        PixelMamba(3, size="tiny").peak_bytes(50, 100, True)


MEASURED = """
import torch
from pathlib import Path
from wsizoo_plugin_pixelmamba.network import Network
from wsizoo_plugin_pixelmamba.settings import Settings

def held(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

network = Network(Settings(size="tiny"))
before = held("VmRSS")
pixels = torch.randint(0, 256, (1, REGIONS, 3, 64, 64), dtype=torch.uint8)
with torch.set_grad_enabled(TRAINING), torch.autocast("cpu", torch.bfloat16, enabled=HALF):
    slide = network(pixels.float() / 128 - 1).slide
if TRAINING:
    slide.float().sum().backward()
print(held("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's own figures")
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("backend", ["numba", "chunked"])
def test_a_process_takes_what_is_planned(backend, training, half):
    if backend == "numba":
        pytest.importorskip("numba")
    given = {"REGIONS": 100, "TRAINING": training, "HALF": half}
    code = functools.reduce(
        lambda text, each: text.replace(*map(str, each)), given.items(), MEASURED
    )
    environment = {"WSIZOO_BACKEND": backend}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    planned = process_bytes(Settings(size="tiny"), 100, (64, 64), training, half)
    found = int(done.stdout)
    assert 0.8 < found / planned < 1.25
