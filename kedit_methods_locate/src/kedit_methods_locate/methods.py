"""What this distribution's methods are, without importing torch: the values of its ``kedit.methods`` entry points."""

from __future__ import annotations

from kedit_core.contract import MethodInfo

rome = MethodInfo(
    name="rome",
    summary="Rank-One Model Editing: one fact into one MLP down-projection (Meng et al. 2022)",
    family="locate",
    implementation="kedit_methods_locate.rome:Rome",
    hparams="kedit_methods_locate.hparams:RomeHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/rome",
)

r_rome = MethodInfo(
    name="r_rome",
    summary="ROME with averaged keys throughout, so that no edit disables the model (Gupta et al. 2024); recommended",
    family="locate",
    implementation="kedit_methods_locate.rome:RRome",
    hparams="kedit_methods_locate.hparams:RRomeHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/r_rome",
)
