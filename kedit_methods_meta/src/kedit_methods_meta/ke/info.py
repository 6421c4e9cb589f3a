"""What the method ``ke`` is, without importing torch: the value of its ``kedit.methods`` entry point."""

from __future__ import annotations

from kedit_core.contract import MethodInfo

ke = MethodInfo(
    name="ke",
    summary="A trained network reads the edit and turns its gradient into an update (De Cao et al. 2021)",
    family="meta",
    implementation="kedit_methods_meta.ke:Ke",
    hparams="kedit_methods_meta.hparams.ke:KeHyperParams",
    operations=frozenset({"low_rank_delta", "dense_delta"}),
    resources=("editor",),
    training="kedit_methods_meta.hparams.ke:KeTrainingHyperParams",
    training_presets="kedit_methods_meta:presets/ke_training",
)
