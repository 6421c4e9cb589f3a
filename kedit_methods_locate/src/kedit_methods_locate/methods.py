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

memit = MethodInfo(
    name="memit",
    summary="Mass-Editing Memory in a Transformer: many facts at once, spread over a few MLPs (Meng et al. 2023)",
    family="locate",
    implementation="kedit_methods_locate.memit:Memit",
    hparams="kedit_methods_locate.hparams:MemitHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "batch", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/memit",
)

emmet = MethodInfo(
    name="emmet",
    summary="MEMIT with an equality instead of a penalty, on one layer (Gupta et al. 2024)",
    family="locate",
    implementation="kedit_methods_locate.emmet:Emmet",
    hparams="kedit_methods_locate.hparams:EmmetHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "batch", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/emmet",
)

pmet = MethodInfo(
    name="pmet",
    summary="Precise Model Editing: targets of MLP and attention searched together, the MLP written (Li et al. 2024)",
    family="locate",
    implementation="kedit_methods_locate.pmet:Pmet",
    hparams="kedit_methods_locate.hparams:PmetHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "batch", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/pmet",
)

alphaedit = MethodInfo(
    name="alphaedit",
    summary="MEMIT restricted to the null space of ordinary keys, for long sequences (Fang et al. 2025)",
    family="locate",
    implementation="kedit_methods_locate.alphaedit:AlphaEdit",
    hparams="kedit_methods_locate.hparams:AlphaEditHyperParams",
    operations=frozenset({"low_rank_delta"}),
    scenarios=frozenset({"single", "batch", "sequential"}),
    needs_subject=True,
    options=("stats", "corpus"),
    presets="kedit_methods_locate:presets/alphaedit",
)

kn = MethodInfo(
    name="kn",
    summary="Knowledge Neurons: the few MLP neurons that carry an answer, rewritten by embeddings (Dai et al. 2022)",
    family="locate",
    implementation="kedit_methods_locate.kn:Kn",
    hparams="kedit_methods_locate.hparams:KnHyperParams",
    operations=frozenset({"sparse_delta"}),
    scenarios=frozenset({"single", "sequential"}),
    needs_subject=False,
    options=(),
    presets="kedit_methods_locate:presets/kn",
)
