"""The loop of a stage: steps over all processes, kept and gone on with."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from wsizoo import Bag, SlideModel
from wsizoo.errors import DataError
from wsizoo.train.checkpointing import check_same, read_checkpoint, write_checkpoint
from wsizoo.train.processes import alike_everywhere, gathered, sum_gradients
from wsizoo_plugin_sparselearn.vlm.slide_vlm import SlideVLM
from wsizoo_plugin_sparselearn.vlm.text import Turns
from wsizoo_plugin_sparselearn.vlm.training_config import Training

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)
Item = tuple[str, Turns]  # a slide, and what is said of it
Read = Callable[[str], Bag]


class Run:
    """Model, optimiser and the place reached.

    Args:
        read: the bag of a slide. state: file from which the same run goes on. whose: what else the
            numbers depend on, by name: a state of other ones is refused.

    Attributes:
        step: the next one, of `total`. losses: of the last step, means over its conversations.
    """

    def __init__(
        self,
        model: SlideModel,
        items: Sequence[Item],
        read: Read,
        config: Training,
        state: Path,
        fabric: Fabric,
        whose: dict[str, Any],
    ) -> None:
        assert isinstance(model.whole, SlideVLM)
        self.model, self.vlm, self.items, self.read = model, model.whole, items, read
        self.config, self.state, self.fabric = config, state, fabric
        self.size = min(config.batch_size, len(items))
        self.steps = len(items) // self.size  # of an epoch; what is left over is shown in others
        self.total = config.epochs * self.steps
        self.step, self.losses = 0, {"answers": math.nan}
        groups = model.param_groups(config.lr)
        self.learning = [p for group in groups for p in group["params"]]
        betas = (config.betas[0], config.betas[1])
        self.optimiser = torch.optim.AdamW(
            groups, config.lr, betas, weight_decay=config.weight_decay
        )
        self.highest = [group["lr"] for group in self.optimiser.param_groups]
        self.identity = {**config.numbers(), **whose}

    def resume(self) -> None:
        """Go on where an earlier run was, or begin. Raises DataError: its state is of another."""
        if self.state.is_file():
            kept = read_checkpoint(self.state)
            check_same(self.state, kept["identity"], self.identity)
            self.model.load_state_dict(kept["model"])
            self.optimiser.load_state_dict(kept["optimiser"])
            self.step = kept["step"]
            log.info("going on at step %d of %d", self.step + 1, self.total)
        else:
            slides = dict.fromkeys(slide for slide, _ in self.items)
            with self._drawn(0):
                self.model.start_training(self.total, (self.bag(slide) for slide in slides))
        alike_everywhere(self.fabric, self.model)

    def keep(self) -> None:
        if self.fabric.is_global_zero:
            told = {"model": self.model.state_dict(), "optimiser": self.optimiser.state_dict()}
            write_checkpoint(self.state, {"identity": self.identity, "step": self.step, **told})

    def finish(self) -> None:
        """All steps that are left."""
        while self.step < self.total:
            self.do()
            told = self.step % self.config.log_steps == 0 or self.step == self.total
            if self.fabric.is_global_zero and told:
                losses = "  ".join(f"{name} {value:.4f}" for name, value in self.losses.items())
                log.info("step %d/%d  %s", self.step, self.total, losses)
            if self.step % self.config.state_steps == 0 and self.step < self.total:
                self.keep()

    def do(self) -> None:
        """One change of the weights.

        Random numbers, too, depend on the step and the place in it alone.

        Raises:
            DataError: a loss that is not finite, naming the slide; in every process.
        """
        self._set_rate()
        self.optimiser.zero_grad(set_to_none=True)
        found: list[tuple[str, str, float]] = []  # slide, name, value
        rank, world = self.fabric.global_rank, self.fabric.world_size
        for place, item in list(enumerate(self.shown()))[rank::world]:
            with self._drawn(1 + self.step * self.size + place):
                slide, turns = item
                losses = self.vlm.conversation_losses([self.bag(slide)], [turns])
                loss = torch.stack(list(losses.values())).sum() / self.size
                loss.backward()  # type: ignore[no-untyped-call]
            found += [(slide, name, value.item()) for name, value in losses.items()]
        self.losses = self._means([one for each in gathered(self.fabric, found) for one in each])
        sum_gradients(self.fabric, self.learning)
        torch.nn.utils.clip_grad_norm_(self.learning, self.config.clip)
        self.optimiser.step()
        self.step += 1
        self.model.after_step(self.step, self.total)

    def shown(self) -> list[Item]:
        """The conversations of the next step."""
        epoch, step = divmod(self.step, self.steps)
        order = np.random.default_rng([self.config.seed, epoch]).permutation(len(self.items))
        return [self.items[i] for i in order[step * self.size : (step + 1) * self.size].tolist()]

    def bag(self, slide: str) -> Bag:
        """Raises as `SlideModel.check_bag`."""
        bag = self.read(slide)
        self.model.check_bag(bag)
        return bag

    def _means(self, found: Sequence[tuple[str, str, float]]) -> dict[str, float]:
        """Means of each loss over the step. Raises DataError: one is not finite."""
        means: dict[str, float] = {}
        for slide, name, value in found:
            if not math.isfinite(value):
                raise DataError(
                    f"the loss '{name}' of slide '{slide}' is {value} in step {self.step + 1}; "
                    "what was kept before is as it was. Train with a smaller rate, as "
                    f"lr={self.config.lr / 10:g}"
                )
            means[name] = means.get(name, 0.0) + value / self.size
        return means

    def _set_rate(self) -> None:
        share = self.config.rate(self.step / self.total)
        for group, highest in zip(self.optimiser.param_groups, self.highest, strict=True):
            group["lr"] = highest * share

    @contextlib.contextmanager
    def _drawn(self, number: int) -> Iterator[None]:
        """Random numbers follow seed and number inside; outside nothing changes."""
        device = self.fabric.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.config.seed * 2**32 + number)
            yield
