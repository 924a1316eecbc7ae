"""Tests are many small products: a second thread would only wait for the first."""

import torch

from wsizoo.testing.fixtures import hub

__all__ = ["hub"]

torch.set_num_threads(1)
