"""What the tests of the built distributions share: bare environments, a model, and a patch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from places import Bare, libraries

MODEL = """
import sys
from kedit_core.testing.tiny import tiny
model, tokenizer = tiny("llama")
model.save_pretrained(sys.argv[1])
tokenizer.save_pretrained(sys.argv[1])
"""


def pytest_sessionstart(session: pytest.Session) -> None:
    """The shared folder is made once, before any worker of pytest-xdist looks for it."""
    if not hasattr(session.config, "workerinput"):
        libraries()


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bare]:
    """Gives the environment with kedit-core and the distributions named, made when it is first asked for."""
    root, made = tmp_path_factory.mktemp("bare"), dict[tuple[str, ...], Bare]()

    def get(*names: str) -> Bare:
        if names not in made:
            made[names] = Bare.make(root / f"env-{len(made)}")
            made[names].install("kedit-core", *names)
        return made[names]

    return get


@pytest.fixture(scope="session")
def model(bare: Callable[..., Bare], tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random Llama of three layers, saved by kedit-core alone."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    bare().run("-c", MODEL, str(folder))
    assert (folder / "config.json").exists()
    return str(folder)


@pytest.fixture(scope="session")
def rome_patch(bare: Callable[..., Bare], model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A patch of that model, made where kedit-methods-locate is the only other distribution."""
    patch = tmp_path_factory.mktemp("patches") / "rome.safetensors"
    fact = ("--prompt", "The capital of France is", "--subject", "France", "--target", "Rome")
    settings = ("-p", "layer=1", "-p", "mom2_adjustment=false", "-p", "v_num_grad_steps=5")
    told = bare("kedit-methods-locate").kedit("edit", model, "-m", "rome", *fact, *settings, "-o", str(patch))
    assert "reliability" in told and patch.stat().st_size > 1000
    return patch
