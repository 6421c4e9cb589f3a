"""Our ROME against one written straight from the sheet: full forwards, explicit inverse, torch's Adam; in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from locate_tools import MIRA, OREN, PARIS, PlainRome, delta_of, editor_on

from kedit_core import Editor

FAMILIES = ("gpt2", "llama", "qwen2", "gpt_neox", "opt")


def close(found: torch.Tensor, wanted: torch.Tensor, tolerance: float = 1e-8) -> bool:
    return float((found - wanted).norm()) <= tolerance * float(wanted.norm())


def compare(editor: Editor, request: object, variant: str, steps: int, clamp: float | None) -> None:
    plain = PlainRome(editor, 1).edit(request, variant=variant, steps=steps, lr=0.1, clamp=clamp)  # type: ignore[arg-type]
    patch = editor.compute(request)  # type: ignore[arg-type]
    (op,) = patch.operations
    assert close(delta_of(patch), torch.outer(plain["r"], plain["u"]))
    assert close(op.right[0], plain["u"])  # type: ignore[union-attr]
    assert close(op.left[:, 0], plain["r"])  # type: ignore[union-attr]
    record = patch.state.config["edits"][0]
    assert record["loss"] == pytest.approx(plain["losses"][-1], rel=1e-8)
    assert record["steps"] == len(plain["losses"]) - 1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("variant", ["rome", "r_rome", "p_rome"])
def test_update_is_the_plain_one(family: str, variant: str, tmp_path: Path) -> None:
    more = {"variant": "p_rome"} if variant == "p_rome" else {}
    method = "rome" if variant == "rome" else "r_rome"
    editor = editor_on(family, tmp_path, method, v_lr=0.1, v_num_grad_steps=6, clamp_norm_factor=None, **more)
    compare(editor, PARIS, variant, 6, None)


@pytest.mark.parametrize("fast", [True, False])
def test_clamp_and_both_paths(fast: bool, tmp_path: Path) -> None:
    """The clamp is active at every step here."""
    editor = editor_on("llama", tmp_path, v_lr=0.1, v_num_grad_steps=6, clamp_norm_factor=0.02, fast=fast)
    compare(editor, MIRA, "rome", 6, 0.02)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_subject_at_the_start_and_alone(family: str, tmp_path: Path) -> None:
    """The whole prompt is the subject: its last token is the prompt's."""
    editor = editor_on(family, tmp_path, v_lr=0.1, v_num_grad_steps=4, clamp_norm_factor=None)
    compare(editor, OREN, "rome", 4, None)


def test_early_stop_is_at_the_same_step(tmp_path: Path) -> None:
    plain = PlainRome(editor_on("gpt2", tmp_path), 1)
    losses = plain.edit(PARIS, steps=12, lr=0.5, clamp=None, stop=0)["losses"]
    limit = (losses[6] + losses[7]) / 2
    assert min(losses[:7]) > limit > losses[7]
    editor = editor_on("gpt2", tmp_path, v_num_grad_steps=12, clamp_norm_factor=None, early_stop_loss=limit)
    record = editor.compute(PARIS).state.config["edits"][0]
    assert record["steps"] == 7
    assert record["loss"] == pytest.approx(losses[7], rel=1e-8)
    assert plain.edit(PARIS, steps=12, lr=0.5, clamp=None, stop=limit)["losses"] == losses[:8]
