"""The conformance kit on SERAC."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serac_tools import a_checkpoint

from kedit_core import Editor
from kedit_core.testing import MethodContract


class TestSerac(MethodContract):
    method = "serac"

    @pytest.fixture(autouse=True)
    def _checkpoints(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder: Path = tmp_path_factory.getbasetemp() / "serac-conformance"

    def editor(self, family: str, dtype: str = "float32", **settings: Any) -> Editor:
        checkpoint = a_checkpoint(self.folder / family, family)
        return super().editor(family, dtype, **{"resources": {"editor": checkpoint}, **settings})
