"""The conformance kit on plain fine-tuning."""

from __future__ import annotations

from kedit_core.testing import MethodContract

_QUICK = {"layers": [1], "num_steps": 3, "lr": 0.01}


class TestFtL(MethodContract):
    method = "ft_l"
    hparams = {**_QUICK, "norm_constraint": 0.02}


class TestFtM(MethodContract):
    method = "ft_m"
    hparams = _QUICK


class TestFtBf(MethodContract):
    method = "ft_bf"
    hparams = {**_QUICK, "batch_size": 2, "replay": True}
