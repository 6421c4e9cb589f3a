"""What this distribution's methods are, without importing torch: the values of its ``kedit.methods`` entry points."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from kedit_core.contract import MethodInfo


def _memory(name: str, summary: str, cls: str, **more: Any) -> MethodInfo:
    """A method of this family: hooks on modules, whose memory grows from round to round, unless ``more`` says else."""
    package = "kedit_methods_memory"
    usual: dict[str, Any] = {
        "operations": {"module"},
        "scenarios": {"single", "batch", "sequential"},
        "state": "extend",
    }
    return MethodInfo(
        name=name,
        summary=summary,
        family="memory",
        implementation=f"{package}.{name}:{cls}",
        hparams=f"{package}.hparams.{name}:{cls}HyperParams",
        presets=f"{package}:presets/{name}",
        **{**usual, **more},
    )


ike = _memory(
    "ike",
    "In-context editing: the new fact and demonstrations are put before the prompt (Zheng et al. 2023)",
    "Ike",
    operations={"router"},
    resources=("encoder", "demonstrations"),
    options=("demonstrations",),
)

ike_context = evolve(
    _memory(
        "ike_context",
        "Retrieval in context: the nearest new fact is put before the prompt, without demonstrations",
        "IkeContext",
        operations={"router"},
        resources=("encoder",),
    ),
    implementation="kedit_methods_memory.ike:IkeContext",
    hparams="kedit_methods_memory.hparams.ike:IkeContextHyperParams",
)

serac = _memory(
    "serac",
    "A scope classifier sends a prompt to a small model that reads the edit (Mitchell et al. 2022)",
    "Serac",
    operations={"router"},
    resources=("editor",),
    training="kedit_methods_memory.hparams.serac:SeracTrainingHyperParams",
    training_presets="kedit_methods_memory:presets/serac_training",
    training_options=("classifier", "counterfactual", "encoder"),
)

grace = _memory(
    "grace",
    "A codebook of keys with radii replaces one layer's output (Hartvigsen et al. 2023)",
    "Grace",
)

melo = _memory(
    "melo",
    "Blocks of a low-rank adapter, picked by a database of neurons' states (Yu et al. 2024)",
    "Melo",
)

wise = _memory(
    "wise",
    "A side memory of one MLP matrix, sharded and merged, with routing by activation (Wang et al. 2024)",
    "Wise",
    options=("corpus",),
)

t_patcher = _memory(
    "t_patcher",
    "One neuron for one mistake, beside the last MLP (Huang et al. 2023)",
    "TPatcher",
    options=("corpus",),
)
