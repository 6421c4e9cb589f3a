"""Two processes train a MEND editor as one with twice the micro-batch: on the CPU, over gloo."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from gloo_tools import run_ranks
from meta_tools import editor_on, records
from safetensors.torch import load_file, save_file

from kedit_core.training import train
from kedit_methods_meta.mend import MendTrainer

RANK = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from meta_tools import editor_on, records
from meta.mend.test_processes import SETTINGS, kept
from kedit_core.training import train
from kedit_core.training.several import processes_here

processes, folder = processes_here(), Path(sys.argv[1])
with kept(folder / f"rank-{processes.rank}.safetensors"):
    train(
        editor_on("gpt2", "mend", dtype=torch.float64), records(8), folder / "editor", {**SETTINGS, "batch_size": 1},
        validation=records(4, 20), processes=processes,
    )
processes.close()
"""
# one rephrase and one unrelated prompt for each record, so that nothing is drawn but the records' order
SETTINGS: dict[str, Any] = {
    "layers": [-1], "iterations": 20, "accumulate": 1, "val_interval": 20, "lr": 1e-3, "edit_lr": 1e-3,
    "locality": "own",
}  # fmt: skip


@contextmanager
def kept(path: Path) -> Iterator[None]:
    """Trains in float64, where Adam does not make rounding great, and writes what this process's trainer has at the
    end (of several processes only the first saves an editor)."""
    with pytest.MonkeyPatch.context() as patch:
        make, editor = MendTrainer.make_editor, MendTrainer.editor

        def written(trainer: MendTrainer) -> Any:
            found = editor(trainer)
            save_file({name: tensor.contiguous() for name, tensor in found[0].items()}, path)
            return found

        patch.setattr(MendTrainer, "make_editor", lambda trainer, generator: make(trainer, generator).double())
        patch.setattr(MendTrainer, "editor", written)
        yield


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """Parameters within 1e-8 after 20 steps; everything, statistics too, identical on both."""
    pytest.importorskip("accelerate")
    run_ranks(RANK, [tmp_path], timeout=600)
    first, second = (load_file(tmp_path / f"rank-{rank}.safetensors") for rank in (0, 1))
    with kept(tmp_path / "one.safetensors"):
        train(
            editor_on("gpt2", "mend", dtype=torch.float64), records(8), tmp_path / "one",
            {**SETTINGS, "batch_size": 2}, validation=records(4, 20),
        )  # fmt: skip
    alone = load_file(tmp_path / "one.safetensors")
    assert first.keys() == second.keys() == alone.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        torch.testing.assert_close(tensor, alone[name], atol=1e-8, rtol=1e-8)
    assert float(next(value for name, value in first.items() if name.endswith("normaliser.count"))) > 40
