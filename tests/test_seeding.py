"""Initial weights: seeded, or left out where trained ones take their place."""

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from wsizoo.seeding import READ, made_blank, refuse_blank, seeded


class Net(nn.Module):
    """Layers that are filled in every usual way."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(300, 300)
        self.norm = nn.BatchNorm1d(300)
        self.table = nn.Embedding(30, 30)
        self.attention = nn.MultiheadAttention(32, 4)
        self.token = nn.Parameter(torch.empty(1, 300))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.xavier_normal_(self.linear.weight)
        nn.init.orthogonal_(self.linear.weight)

    def inference_state(self) -> dict[str, Tensor]:
        return self.state_dict()


class Drawn(Net):
    """It draws a number besides."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.rand(3)


class Teacher(Net):
    """Its teacher is not published."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = copy.deepcopy(self.linear)

    def inference_state(self) -> dict[str, Tensor]:
        return {k: t for k, t in self.state_dict().items() if not k.startswith("teacher")}


class Table(Net):
    """Its table is a buffer that is not published."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("positions", torch.arange(3.0), persistent=False)


class Hidden(Net):
    """A parameter that torch does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(3, 3)]


class Linear(nn.Linear):
    """The most usual case."""

    def inference_state(self) -> dict[str, Tensor]:
        return self.state_dict()


class Read(Linear):
    """Beside a network that it read from a file."""

    def __init__(self) -> None:
        super().__init__(3, 3)
        self.read = nn.Linear(5, 5, device="meta").to_empty(device="cpu")
        self.read.load_state_dict({"weight": torch.ones(5, 5), "bias": torch.ones(5)})
        setattr(self.read, READ, True)

    def inference_state(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias}


def test_fills_are_left_out_where_everything_is_overwritten() -> None:
    filled: list[bool] = []

    def make() -> Linear:
        made = Linear(50, 50)
        nn.init.zeros_(made.weight)
        nn.init.normal_(made.weight)
        nn.init.trunc_normal_(made.weight)
        made.weight.data.add_(0)
        filled.append(bool(made.weight.any()))
        return made

    assert made_blank(make, 0) is not None
    assert filled == [False]


def test_what_was_read_from_a_file_need_not_be_overwritten() -> None:
    made = made_blank(Read, 0)
    assert made is not None and bool((made.read.weight == 1).all())

    class Filled(Read):
        def __init__(self) -> None:
            super().__init__()
            nn.init.normal_(self.read.weight)

    assert made_blank(Filled, 0) is None


def test_a_part_that_must_be_filled_says_so_before_what_is_slow() -> None:
    slow: list[int] = []

    def make(part: type[Net | Linear]) -> Net | Linear:
        made = part() if part is Teacher else part(3, 3)
        refuse_blank(made)
        slow.append(1)
        return made

    assert made_blank(lambda: make(Teacher), 0) is None and not slow
    assert made_blank(lambda: make(Linear), 0) is not None and slow
    make(Teacher)  # elsewhere it changes nothing


def test_only_one_thread_goes_without_fills() -> None:
    drawn: list[Tensor] = []

    def make() -> Linear:
        thread = threading.Thread(target=lambda: drawn.append(nn.Linear(50, 50).weight))
        thread.start()
        thread.join()
        return Linear(2, 2)

    made_blank(make, 0)
    assert float(drawn[0].detach().std()) > 0.01


@pytest.mark.parametrize("kind", [Net, Drawn, Teacher, Table, Hidden])
def test_what_would_be_noticed_is_made_in_full(kind: type[Net]) -> None:
    """Net too: orthogonal_ draws numbers of its own."""
    assert made_blank(kind, 0) is None


def test_a_seed_holds_inside_and_changes_nothing_outside() -> None:
    before = torch.random.get_rng_state()
    with seeded(3):
        one = torch.rand(3)
        with seeded(3):
            assert torch.equal(torch.rand(3), one)
    assert torch.equal(torch.random.get_rng_state(), before)
