"""The conformance kit on MEND, with an editor trained for two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from meta_tools import catalogue, trained

from kedit_core import Editor
from kedit_core.plugins import Catalogue
from kedit_core.testing import MethodContract


class TestMend(MethodContract):
    method = "mend"

    @pytest.fixture(autouse=True)
    def _folders(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        self.folder: Path = tmp_path_factory.getbasetemp() / "mend-conformance"

    def catalogue(self) -> Catalogue:
        return catalogue()

    def editor(self, family: str, dtype: str = "float32", **settings: Any) -> Editor:
        # a large step, so that also a weight in half precision moves
        folder = trained(self.folder / family, family, "mend", edit_lr=0.05)
        return super().editor(family, dtype, **{"resources": {"editor": folder}, **settings})
