"""What this distribution's methods are, without importing torch: the values of its ``kedit.methods`` entry points."""

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

mend = MethodInfo(
    name="mend",
    summary="A trained network makes the gradient's factors into a low-rank edit (Mitchell et al. 2022)",
    family="meta",
    implementation="kedit_methods_meta.mend:Mend",
    hparams="kedit_methods_meta.hparams.mend:MendHyperParams",
    operations=frozenset({"low_rank_delta", "dense_delta"}),
    resources=("editor",),
    training="kedit_methods_meta.hparams.mend:MendTrainingHyperParams",
    training_presets="kedit_methods_meta:presets/mend_training",
)

malmen = MethodInfo(
    name="malmen",
    summary="A trained network's wishes for all tokens, solved for together by ridge regression (Tan et al. 2024)",
    family="meta",
    implementation="kedit_methods_meta.malmen:Malmen",
    hparams="kedit_methods_meta.hparams.malmen:MalmenHyperParams",
    operations=frozenset({"low_rank_delta", "dense_delta"}),
    resources=("editor",),
    options=("spill",),
    training="kedit_methods_meta.hparams.malmen:MalmenTrainingHyperParams",
    training_options=("spill",),
    training_presets="kedit_methods_meta:presets/malmen_training",
)
