"""The conformance kit on GRACE."""

from __future__ import annotations

from kedit_core.testing import MethodContract


class TestGrace(MethodContract):
    method = "grace"
    hparams = {"layer": 1, "n_iter": 4, "eps0": 0.5}


class TestGraceOnTheWholePrompt(MethodContract):
    method = "grace"
    hparams = {"layer": 1, "n_iter": 4, "eps0": 0.5, "replacement": "replace_prompt", "value_init": "warm"}
    families = ("gpt2",)
