"""Tests are many small products: a second thread would only wait for the first."""

import torch

from wsizoo.testing.fixtures import hub  # noqa: F401

torch.set_num_threads(1)
