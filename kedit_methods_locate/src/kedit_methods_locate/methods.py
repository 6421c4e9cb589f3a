"""What this distribution's methods are, without importing torch: the values of its ``kedit.methods`` entry points."""

from __future__ import annotations

from typing import Any

from kedit_core.contract import MethodInfo


def _locate(name: str, summary: str, where: str, hparams: str, **more: Any) -> MethodInfo:
    """A method of this family: low-rank, with a subject and statistics, unless ``more`` says otherwise."""
    package = "kedit_methods_locate"
    usual: dict[str, Any] = {
        "operations": {"low_rank_delta"},
        "scenarios": {"single", "batch", "sequential"},
        "needs_subject": True,
        "options": ("stats", "corpus"),
    }
    return MethodInfo(
        name=name,
        summary=summary,
        family="locate",
        implementation=f"{package}.{where}",
        hparams=f"{package}.hparams:{hparams}",
        presets=f"{package}:presets/{name}",
        **{**usual, **more},
    )


_ONE_BY_ONE = frozenset({"single", "sequential"})

rome = _locate(
    "rome",
    "Rank-One Model Editing: one fact into one MLP down-projection (Meng et al. 2022)",
    "rome:Rome",
    "RomeHyperParams",
    scenarios=_ONE_BY_ONE,
)

r_rome = _locate(
    "r_rome",
    "ROME with averaged keys throughout, so that no edit disables the model (Gupta et al. 2024); recommended",
    "rome:RRome",
    "RRomeHyperParams",
    scenarios=_ONE_BY_ONE,
)

memit = _locate(
    "memit",
    "Mass-Editing Memory in a Transformer: many facts at once, spread over a few MLPs (Meng et al. 2023)",
    "memit:Memit",
    "MemitHyperParams",
)

emmet = _locate(
    "emmet",
    "MEMIT with an equality instead of a penalty, on one layer (Gupta et al. 2024)",
    "emmet:Emmet",
    "EmmetHyperParams",
)

pmet = _locate(
    "pmet",
    "Precise Model Editing: targets of MLP and attention searched together, the MLP written (Li et al. 2024)",
    "pmet:Pmet",
    "PmetHyperParams",
)

alphaedit = _locate(
    "alphaedit",
    "MEMIT restricted to the null space of ordinary keys, for long sequences (Fang et al. 2025)",
    "alphaedit:AlphaEdit",
    "AlphaEditHyperParams",
)

kn = _locate(
    "kn",
    "Knowledge Neurons: the few MLP neurons that carry an answer, rewritten by embeddings (Dai et al. 2022)",
    "kn:Kn",
    "KnHyperParams",
    scenarios=_ONE_BY_ONE,
    operations={"sparse_delta"},
    needs_subject=False,
    options=(),
)
