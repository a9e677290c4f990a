"""Whether the loss kernel can run in this process: an accelerator, and the package for it.

Imports neither Triton nor a model: the service asks too, before a job is queued.
"""

import importlib.util

import torch


def why_no_kernel() -> str:
    """Return what is missing, in words that end a sentence; empty: it can run."""
    if not torch.cuda.is_available():
        return "there is no accelerator, and on CPUs the loss needs no kernel"
    if importlib.util.find_spec("triton") is None:
        return "matryoshka-suite[kernel] is not installed with the trainer"
    return ""
