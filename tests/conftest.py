"""Shared set-up of all tests: few threads (test processes share the cores) and no network."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
from hypothesis import settings

settings.register_profile("fast", max_examples=10, deadline=None)  # make test-fast; the whole suite takes the usual 100


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The conformance kit is quick on one family of models; on the others it is for the whole suite."""
    for item in items:
        family = getattr(item, "callspec", None) and item.callspec.params.get("family")
        if any(cls.__name__ == "MethodContract" for cls in getattr(item.cls, "__mro__", ())) and family != "gpt2":
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_grad_mode() -> Iterator[None]:
    """A test that leaves the global gradient mode changed fails itself, instead of those after it."""
    import torch

    yield
    left_off = not torch.is_grad_enabled()
    torch.set_grad_enabled(True)
    assert not left_off, "the test left gradients disabled for the whole process"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's cache."""
    monkeypatch.setenv("KEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "kedit-cache"))
