"""Every error wsizoo raises on purpose, in one tree.

A message says what is wrong (with the value, and whose it is), what was expected, and what to
type next.
"""

import logging

log = logging.getLogger(__name__)


class WsizooError(Exception):
    """Root of the tree; the command line prints it as one message and exits with 1."""


class NotFoundError(WsizooError):
    """No model, component or file has this name."""


class PluginError(WsizooError):
    """A plugin failed to import, to register, or does not hold what it announced."""


class SpecError(WsizooError):
    """A registry entry, recipe or override is not well formed."""


class WeightsError(WsizooError):
    """Weights are not there, not the ones that were pinned, or do not fit the module."""


class NoWeightsError(WeightsError):
    """Nobody has released weights for this entry."""


class NotPinnedError(WeightsError):
    """A repository is known, but no commit and digest that could be trusted."""


class RepoNotFoundError(WeightsError):
    """The Hub has no such repository, revision or file (or hides it from this token)."""


class GatedError(WeightsError):
    """The repository asks for a licence to be accepted: no token, or one without the grant."""


class OfflineError(WeightsError):
    """The file is not in the cache and the Hub cannot be reached."""


class DigestError(WeightsError):
    """The bytes are not those that were pinned."""


class StrictnessError(WeightsError):
    """Tensors are missing, unexpected or misshapen."""


class BagError(WsizooError):
    """A bag is malformed, or is not one this model can read."""


class FingerprintError(BagError):
    """Features were made by another encoder, or in another way, than the model was trained on."""


class BackendError(WsizooError):
    """A backend of an op is unknown here or cannot run these inputs."""


class SlideError(WsizooError):
    """A slide cannot be opened or read, or holds nothing to analyse."""


class ScaleError(SlideError):
    """Microns per pixel are missing or impossible."""


class DataError(WsizooError):
    """A file or table of data is missing, damaged or contradictory."""


def reason_of(error: Exception) -> str:
    """Why one of many failed; the trace of an error that is not ours goes to the log."""
    if isinstance(error, WsizooError):
        return str(error)
    log.debug("unexpected error", exc_info=error)
    return f"{type(error).__name__}: {error}"
