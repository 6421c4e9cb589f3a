"""The conformance kit on MELO."""

from __future__ import annotations

from kedit_core.testing import MethodContract

SMALL = {"num_iter": 4, "blocks": 8, "lr": 0.01, "radius": 0.3}


class TestMelo(MethodContract):
    method = "melo"
    hparams = {"scope_layer": 0, "layers": [1, 2], **SMALL}


class TestMeloInTheDecoderToo(MethodContract):
    method = "melo"
    hparams = {"scope_layer": 0, "layers": [1], "decoder_layers": [0, 1], "parts": ["mlp_out"], **SMALL}
    families = ("t5",)


class TestMeloInBatches(MethodContract):
    method = "melo"
    hparams = {"scope_layer": 0, "layers": [1], "edits_per_block": 2, "lora_factor": "one", **SMALL}
    families = ("gpt2",)
