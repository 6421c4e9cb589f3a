"""The conformance kit on our own methods."""

from __future__ import annotations

from kedit_core.testing import MethodContract

_QUICK = {"layer": 1, "v_num_grad_steps": 3, "context_lengths": [[6, 2]]}


class TestRome(MethodContract):
    method = "rome"
    hparams = _QUICK


class TestRRome(MethodContract):
    method = "r_rome"
    hparams = _QUICK
