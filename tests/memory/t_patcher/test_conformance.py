"""The conformance kit on T-Patcher."""

from __future__ import annotations

from kedit_core.testing import MethodContract


class TestTPatcher(MethodContract):
    method = "t_patcher"
    hparams = {"lr": 0.05, "max_epochs": 60, "validate_every": 10, "min_epochs": 20, "memory_size": 100}
    families = ("gpt2", "llama", "t5", "opt")
