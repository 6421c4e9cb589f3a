"""Editors learn to edit a model that knows facts (acceptance check 2 of the trainer)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from kedit_core import Editor
from kedit_core.training import train
from kedit_core.training.averages import Averages
from kedit_core.training.run import training_context, training_settings
from kedit_factworld.training import training_cases

SHARED = {"parts": ["mlp_in", "mlp_out"], "layers": [4, 5], "rank": 64, "accumulate": 1, "clip": 10.0}
SETTINGS: dict[str, dict[str, Any]] = {
    # at first an edit changes nothing: what it becomes is learned
    "mend": {**SHARED, "edit_lr": 1e-6, "lr": 3e-5, "lr_lr": 1e-4, "c_edit": 0.1, "batch_size": 10},
    "malmen": {**SHARED, "eta": 1e-6, "lr": 1e-4, "c_loc": 8.0, "batch_size": 10, "micro_batch": 10},
}
STEPS = {"mend": 60, "malmen": 100}


@pytest.mark.slow
@pytest.mark.parametrize("method", SETTINGS)
def test_2_the_edit_loss_is_halved_and_the_rest_stays(method: str, tmp_path: Path) -> None:
    """Within far fewer than 2,000 steps, on subjects that training never saw: below half, at less than 0.1 nats."""
    steps = STEPS[method]
    settings = {**SETTINGS[method], "iterations": steps, "val_interval": steps, "val_items": 40}
    learn_on, judge_on = training_cases(1000, part="train"), training_cases(60, seed=1, part="validation")
    editor = Editor.from_pretrained("factworld:llama", method)
    hparams = training_settings(editor, settings).hparams
    trainer = editor.host.make_trainer(training_context(editor, hparams, learn_on, judge_on), hparams)
    first = Averages()
    trainer.run_step(trainer.draw(range(10), torch.Generator().manual_seed(0)))  # there are no statistics before
    with torch.no_grad():
        for batch in trainer.validation():
            first.add(trainer.validate_step(batch).values)
    outcome = train(editor, learn_on, tmp_path / "editor", settings, validation=judge_on).outcome
    assert first.values()["loss/edit"] > 3
    assert outcome.best_values["loss/edit"] < 0.5 * first.values()["loss/edit"]
    assert outcome.best_values["loss/loc"] < 0.1
