"""The conformance kit on our own methods."""

from __future__ import annotations

from typing import Any

from kedit_core.testing import MethodContract

_QUICK: dict[str, Any] = {"v_num_grad_steps": 3, "context_lengths": [[6, 2]]}
_SPREAD = {**_QUICK, "layers": [0, 1]}


class TestRome(MethodContract):
    method = "rome"
    hparams = {**_QUICK, "layer": 1}


class TestRRome(MethodContract):
    method = "r_rome"
    hparams = {**_QUICK, "layer": 1}


class TestMemit(MethodContract):
    method = "memit"
    hparams = {**_SPREAD, "mom2_update_weight": 10.0}


class TestEmmet(MethodContract):
    method = "emmet"
    hparams = {**_QUICK, "layers": [1], "mom2_update_weight": 10.0}


class TestPmet(MethodContract):
    method = "pmet"
    hparams = {**_SPREAD, "mom2_update_weight": 10.0}


class TestPmetOnAttentionToo(MethodContract):
    method = "pmet"
    hparams = {**_SPREAD, "mom2_update_weight": 10.0, "projections": ["attn_out", "mlp_out"]}


class TestAlphaEdit(MethodContract):
    method = "alphaedit"
    hparams = {**_SPREAD, "nullspace_energy": 0.1, "l2": 0.1, "l2_unit": "keys"}
