"""KE against the conformance kit, with a small editor trained for each family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ke_tools import catalogue, trained

from kedit_core.editing import Editor
from kedit_core.plugins import Catalogue
from kedit_core.testing import MethodContract


class TestKe(MethodContract):
    method = "ke"
    hparams = {"iterations": 2}
    folder: Path

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _folder(cls, tmp_path_factory: pytest.TempPathFactory) -> None:
        cls.folder = tmp_path_factory.mktemp("ke")

    def catalogue(self) -> Catalogue:
        return catalogue()

    def editor(self, family: str, dtype: str = "float32", **settings: Any) -> Editor:
        folder = trained(self.folder / family, family)
        return super().editor(family, dtype, **{"resources": {"editor": folder}, **settings})
