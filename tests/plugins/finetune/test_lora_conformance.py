"""The conformance kit on lora and adalora."""

from __future__ import annotations

from kedit_core.testing import MethodContract


class TestLora(MethodContract):
    method = "lora"
    hparams = {"num_steps": 2}


class TestAdaLora(MethodContract):
    method = "adalora"
    hparams = {"num_steps": 2}
