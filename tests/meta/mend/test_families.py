"""MEND and MALMEN on every family that kedit knows: fused and gated projections, tied heads, shared keys and values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from meta_tools import editor_on, records, trained

from kedit_core.testing.snapshot import Snapshot, weights
from kedit_core.testing.tiny import FAMILIES

BIG = {"mend": {"edit_lr": 0.05}, "malmen": {"eta": 0.05}}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mend", "malmen"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_trained_edited_and_given_back(tmp_path: Path, family: str, method: str) -> None:
    """Trained in float32, edited in bfloat16, round after round; all its parts, and not a bit is left behind."""
    parts = ["mlp_in", "mlp_out"] if family.startswith("t5") else ["mlp_in", "mlp_out", "attn_out"]
    folder = trained(
        tmp_path / "e",
        family,
        method,
        **BIG[method],
        batch_size=4,
        iterations=1,
        val_interval=1,
        parts=parts,
        layers=[-1],
    )
    editor = editor_on(family, method, folder, torch.bfloat16)
    before = Snapshot(editor.model)
    result = editor.edit(records(3), scenario="sequential", batch_size=2, evaluate=False)
    after = weights(editor.model)
    changed = {name for name, digest in before.weights.items() if after[name] != digest}
    assert changed == {*result.patch.base.tensors}
    assert len(changed) >= 3
    editor.restore()
    assert not before.differences(editor.model)
