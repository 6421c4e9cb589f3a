"""Whether a sequence goes on from the statistics that it was begun with; the live patches tell what that was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from kedit_core.editing import EditContext
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats.statistic import Statistic
from kedit_methods_locate.stats.store import ROLE


def resource_name(layer: int, part: Projection) -> str:
    """Under which name a patch's state has the digest of the statistic that it stands on."""
    return f"{ROLE}.{layer}" if part == "mlp_out" else f"{ROLE}.{layer}.{part}"


def other_statistic(context: EditContext, statistic: Statistic, part: Projection) -> bool:
    """Warn ``other_statistic`` when an edit of this method on the model stands on another statistic of the layer.

    Returns: whether it was said.
    """
    name = resource_name(statistic.layer, part)
    for patch, config in _before(context):
        recorded = dict(config.get("resources") or {}).get(name)
        if recorded is not None and recorded != statistic.digest:
            _say(context, statistic.layer, patch, "statistic")
            return True
    return False


def other_null_space(context: EditContext, layer: int, rank: int, digest: str) -> None:
    """Warn ``other_statistic`` when an edit of this method on the model was made in another null space of the layer.

    For one and the same statistic (ask :func:`other_statistic` first). Its null spaces differ in their rank; bases of
    one rank that differ in their bits are of another machine's eigenvectors, which span the same.
    """
    for patch, config in _before(context):
        for space in config.get("null_spaces") or ():
            if space.get("layer") == layer and space.get("sha256") != digest and space.get("rank") != rank:
                _say(context, layer, patch, "null space")
                return


def _before(context: EditContext) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Id and state of each edit of this method that is on the model."""
    for entry in context.stack.patches:
        if context.method is not None and entry.patch.method.name == context.method.name:
            yield from ((entry.patch.id, state.config) for state in entry.patch.states())


def _say(context: EditContext, layer: int, patch: str, what: str) -> None:
    context.warn(
        "other_statistic",
        float(layer),
        "go on with what the sequence was begun with (--stats, --corpus, nullspace_*), or take its patches off first",
        f"at layer {layer} this edit stands on another {what} than the patch {patch[:12]} of this method, which is on "
        "the model: the two leave different directions alone",
    )
