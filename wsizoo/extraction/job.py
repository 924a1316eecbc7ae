"""What is done with one slide, in whichever process."""

from __future__ import annotations

import dataclasses
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from wsizoo.encoders.batches import BatchEncoder, Precision
from wsizoo.encoders.loading import load_encoder
from wsizoo.errors import reason_of
from wsizoo.interfaces import Encoder
from wsizoo.ops.memory import give_back
from wsizoo.slides.extract import Progress, Request, SlideEncoder
from wsizoo.slides.manifest import SlideEntry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Extracted:
    """What became of one slide; a row of `extract.csv`.

    Args:
        state: "done", "present" (an equal file was there) or "failed". reason: why it failed.
        patches: in the file. unreadable: patches that could not be decoded.
        tissue: share of the slide. beyond_grid: share of the tissue at the right and bottom edge,
            where no whole patch fits. mpp: um per level-0 px. mpp_source: where that comes from.
        scale_error: of the patches' um/px against what was asked for, relative.
    """

    slide_id: str
    slide: Path
    file: Path
    state: str
    patches: int = 0
    seconds: float = 0.0
    reason: str = ""
    unreadable: int = 0
    tissue: float | None = None
    beyond_grid: float | None = None
    mpp: float | None = None
    mpp_source: str | None = None
    scale_error: float | None = None


@dataclass(frozen=True)
class Job:
    """How slides are to be encoded: all that another process needs to know.

    Args:
        encoder: a name, which each process loads for itself, or an Encoder, which is sent.
        weights: folder with the encoder's weights. precision: see `BatchEncoder`.
        threads: that decode patches, in each process. token: tells jobs apart.
    """

    encoder: str | Encoder
    out: Path
    request: Request
    overwrite: bool = False
    device: torch.device | str | None = None
    weights: Path | None = None
    precision: Precision = "auto"
    threads: int = 1
    token: str = field(default_factory=lambda: secrets.token_hex(8))

    def load(self) -> Encoder:
        """The encoder, in eval mode, where it was loaded. Raises as `load_encoder`."""
        if isinstance(self.encoder, Encoder):
            return self.encoder.eval()
        return load_encoder(self.encoder, weights=self.weights)

    @property
    def needs_gpu(self) -> bool:
        return str(self.device or "cpu").startswith("cuda")

    def absolute(self) -> Job:
        """The same for a process in another folder."""
        mask, weights = self.request.mask, self.weights
        request = dataclasses.replace(self.request, mask=mask and mask.absolute())
        weights = weights and weights.absolute()
        return dataclasses.replace(self, out=self.out.absolute(), request=request, weights=weights)

    def failed(self, entry: SlideEntry, reason: str = "") -> Extracted:
        """The result of a slide that was not done."""
        file = self.out / f"{entry.slide_id}.h5"
        return Extracted(entry.slide_id, entry.path, file, "failed", reason=reason)

    def begin(self) -> Station:
        """Load the encoder and move it to its device, in the process that uses it."""
        return Station(self, BatchEncoder(self.load(), self.device, self.precision))


@dataclass(frozen=True)
class Station:
    """A process that is ready for slides."""

    job: Job
    encode: BatchEncoder

    def run(self, entry: SlideEntry, progress: Progress | None = None) -> Extracted:
        """One slide; whatever fails is its reason."""
        start = time.monotonic()
        result = self.job.failed(entry)
        try:
            maker = SlideEncoder(self.encode, self.job.request, progress, self.job.threads)
            header, present = maker.extract(entry, result.file, self.job.overwrite)
            facts = header.facts
            result = dataclasses.replace(
                result,
                state="present" if present else "done",
                patches=header.n,
                unreadable=header.unreadable,
                tissue=facts.tissue,
                beyond_grid=facts.beyond_grid,
                mpp=header.mpp,
                mpp_source=facts.mpp_source,
                scale_error=(facts.certificate or {}).get("error"),
            )
        except Exception as error:
            result = dataclasses.replace(result, reason=reason_of(error))
        give_back()  # else a process keeps, of each thread, the most that any slide has needed
        return dataclasses.replace(result, seconds=round(time.monotonic() - start, 2))
