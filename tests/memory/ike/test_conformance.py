"""The conformance kit on the methods of retrieval in context."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ike_tools import demonstrations

from kedit_core.testing import MethodContract


class TestIke(MethodContract):
    method = "ike"
    hparams = {"encoder": "ngrams", "k": 4, "answer_tokens": 8}

    def options(self) -> Mapping[str, Any]:
        return {"demonstrations": demonstrations(8)}


class TestIkeAsEasyEdit(MethodContract):
    method = "ike"
    hparams = {"encoder": "ngrams", "k": 16, "answer_tokens": 8, "mode": "easyedit"}
    families = ("gpt2",)

    def options(self) -> Mapping[str, Any]:
        return {"demonstrations": demonstrations(8)}


class TestIkeContext(MethodContract):
    method = "ike_context"
    hparams = {"encoder": "ngrams", "answer_tokens": 8}
