"""Keys that tests sign with: made once, since making them is slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from kedit_core.patches.keys import new_pair


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    return new_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Those of somebody else."""
    return new_pair(tmp_path_factory.mktemp("strangers"))
