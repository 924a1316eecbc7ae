"""SPAN on a GPU: a training step by backend, its memory, and slides in a batch.

bf16 is autocast over float32 weights. A share of the bf16 rate is: multiply-adds of the published
products and of their gradients, in the step's time, of those of one large bf16 product in its own.
"""

import functools
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

import wsizoo
from benchmarks._measure import interleaved
from benchmarks.span import model_of, published_products, pyramid_of, slide
from wsizoo.errors import BackendError
from wsizoo.ops import Windows, grid_attention, use_backend

SIZES = (2_000, 10_000, 30_000, 100_000)
BACKENDS = ("reference", "blocked", "flash")
REFERENCE_UP_TO = 5_000  # it builds T x T scores
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
DROPOUTS = {
    "dropout as configured": (),
    "attention without dropout": ("aggregator.attention_dropout=0",),
}
HEADS, HEAD_DIM, HALF_WINDOW = 8, 64, 3
SLIDES, PATCHES = 32, 2_000  # of a batch
EDGE = 8192  # of the product that gives the rate
ROUNDS = 7
Step = Callable[[], None]


def run() -> None:
    if not torch.cuda.is_available():
        print("  left out: no CUDA device is here")
        return
    print(f"  {torch.cuda.get_device_name()}, torch {torch.__version__}")
    compare("cuda", SIZES, SLIDES, PATCHES)


def compare(device: str, sizes: tuple[int, ...], slides: int, patches: int) -> None:
    rate = _rate(device)
    print(f"  bf16 products: {rate / 1e12:.0f} T multiply-adds a second")
    for n in sizes:
        _attention(device, n)
        for name in DTYPES:
            for dropout, overrides in DROPOUTS.items():
                _steps(device, n, f"{name}, {dropout}", rate, name, *overrides)
    for name in DTYPES:
        _batches(device, name, slides, patches)


def _rate(device: str) -> float:
    """Multiply-adds a second of a large bf16 product."""
    factor = torch.randn(EDGE, EDGE, device=device, dtype=torch.bfloat16)
    return EDGE**3 / statistics.median(_timed(device, lambda: torch.mm(factor, factor))[0])


def _steps(device: str, n: int, what: str, rate: float, name: str, *overrides: str) -> None:
    """A training step of the classification default."""
    model, bag = model_of("span-mil-uni", *overrides).to(device), slide(n).to(device)
    products = published_products(model, pyramid_of(model, bag))
    macs = [rows * a * b for rows, a, b in products]
    work = 3 * sum(macs) - macs[0]  # features need no gradient
    step = _training(device, name, lambda: model.losses(model(bag), bag))

    def share(seconds: float) -> str:
        return f", {work / seconds / rate:.0%} of the bf16 rate"

    _by_backend(device, f"{n} patches, {what}", n, step, share)


def _attention(device: str, n: int) -> None:
    """The op alone, with a bias, bf16 throughout."""
    bag = slide(n)
    windows = Windows((bag.coords // 256).to(device), HALF_WINDOW)
    edge = 2 * windows.reach + 1
    shapes = [(n, HEADS, HEAD_DIM)] * 3 + [(HEADS, edge, edge)]
    tensors = [torch.randn(s, device=device, dtype=torch.bfloat16) for s in shapes]
    q, k, v, bias = (x.requires_grad_() for x in tensors)

    def step() -> None:
        grid_attention(q, k, v, windows, bias).sum().backward()

    _by_backend(device, f"{n} patches, bf16, attention alone", n, step)


def _by_backend(
    device: str, what: str, n: int, step: Step, share: Callable[[float], str] = lambda _: ""
) -> None:
    """Print time and memory of a step on each backend that runs it, timed in turn."""
    runs: dict[str, Step] = {}
    for backend in BACKENDS if n <= REFERENCE_UP_TO else BACKENDS[1:]:
        runs[backend] = functools.partial(_on, backend, step)
        try:
            runs[backend]()
        except BackendError as error:
            print(f"  {what}: {error}")
            del runs[backend]
    for backend, seconds in zip(runs, _timed(device, *runs.values()), strict=True):
        median, memory = statistics.median(seconds), _memory(device, runs[backend])
        print(f"  {what}: {backend} {median * 1e3:.2f} ms{share(median)}, {memory:.0f} MB")


def _batches(device: str, name: str, slides: int, patches: int) -> None:
    """A batch in one step against its slides one by one, on whatever backend is chosen."""
    model = model_of("span-mil-uni").to(device)
    bags = [slide(patches, seed).to(device) for seed in range(slides)]
    batch = wsizoo.BagBatch.pack(bags)

    together = _training(device, name, lambda: model.losses(model.forward_packed(batch), batch))
    each = [_training(device, name, lambda bag=bag: model.losses(model(bag), bag)) for bag in bags]

    def one_by_one() -> None:
        for step in each:
            step()

    packed, alone = (statistics.median(seconds) for seconds in _timed(device, together, one_by_one))
    print(
        f"  {slides} slides of {patches}, {name}: {alone / packed:.2f} x as fast in a batch; "
        f"{packed * 1e3:.1f} ms against {alone * 1e3:.1f} ms"
    )


def _on(backend: str, step: Step) -> None:
    with use_backend(backend):
        step()


def _training(device: str, name: str, losses: Callable[[], dict[str, Tensor]]) -> Step:
    """A step of training; the forward pass under autocast for bf16."""

    def step() -> None:
        with torch.autocast(device, DTYPES[name], enabled=name == "bf16"):
            total = torch.stack(list(losses().values())).sum()
        total.backward()

    return step


def _timed(device: str, *steps: Step) -> list[list[float]]:
    """Seconds of each, the device's work included."""

    def finished(step: Step) -> None:
        step()
        if device == "cuda":
            torch.cuda.synchronize()

    return interleaved(*(functools.partial(finished, step) for step in steps), rounds=ROUNDS)


def _memory(device: str, step: Step) -> float:
    """MB of the device over what lies there before; gradients do."""
    if device != "cuda":
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    return (torch.cuda.max_memory_allocated() - before) / 1e6
