"""The conformance kit on knowledge neurons."""

from __future__ import annotations

from kedit_core.testing import MethodContract


class TestKn(MethodContract):
    method = "kn"
    hparams = {"steps": 3}
