"""Which layers to edit, from average indirect effects; and how much located layers tell one fact from another."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from attrs import frozen

from kedit_core.errors import InputError
from kedit_methods_locate.tracing.many_facts import AverageTrace, place_of
from kedit_methods_locate.tracing.record import Trace

_SPAN = 5  # MEMIT's ranges: 5 of 48 blocks in GPT-2 XL, 6 of 28 in GPT-J
_FACTS = 30  # fewer say little about a model
_CLEAR = 0.1  # of the total effect


@frozen
class Suggestion:
    """Layers to edit.

    Attributes:
        layer: for methods that edit one (ROME).
        layers: for methods that spread an edit over a range (MEMIT): it ends at ``layer``.
        kind: the table it was read from.
        effect: the average indirect effect there.
        clear: whether that is a good part of the total effect, the most that MLPs give back, over enough facts.
        reason: the same in words.
    """

    layer: int
    layers: tuple[int, ...]
    kind: str
    effect: float
    clear: bool
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "layer": self.layer,
            "layers": list(self.layers),
            "kind": self.kind,
            "effect": self.effect,
            "clear": self.clear,
            "reason": self.reason,
        }


def suggest_layers(average: AverageTrace, num_layers: int | None = None, span: int | None = None) -> Suggestion:
    """Layers to edit: where restoring MLPs at the subject's last token gives most back.

    ROME edits the layer of that maximum (Meng et al. 2022, section 3); MEMIT a range of critical layers that ends
    there (Meng et al. 2023, section 4.1), so that its last layer can still write what the others left over. Where
    MLPs were not traced the blocks' own states are read instead, whose maximum comes later.

    A trace shows where recall happens under this corruption, not where an edit works best (Hase et al. 2023): try the
    neighbours too.

    Args:
        num_layers: blocks of the model that will be edited; refused when it is another one's. None: not checked.
        span: length of the range; None is 5, or a quarter of the blocks (rounded up) where that is fewer.

    Raises:
        InputError: another model, neither MLPs nor blocks traced, or a span that is not within the model.
    """
    layers = average.num_layers
    if num_layers is not None and num_layers != layers:
        raise InputError(f"the traces are of a model of {layers} blocks, not {num_layers}; trace the model you edit")
    span = min(_SPAN, math.ceil(layers / 4)) if span is None else span
    if not 1 <= span <= layers:
        raise InputError(f"a range of {span} layers does not lie within {layers}; choose 1 to {layers}")
    kind = next((kind for kind in ("mlp", "block") if kind in average.effects), None)
    if kind is None:
        raise InputError("layers are suggested from the kind mlp or block; trace one of them")
    effects = average.at(kind, "last_subject")
    layer = int(effects.argmax())
    effect = float(effects[layer])
    chosen = tuple(range(max(0, layer - span + 1), layer + 1))
    what = f"MLP outputs in windows of {average.window}" if kind == "mlp" else "single residual states"
    reason = (
        f"restoring {what} at the subject's last token gives most back around layer {layer}: {effect:.3f} of "
        f"the {average.total_effect:.3f} that the corruption takes away, over {average.facts} "
        f"fact{'s' * (average.facts != 1)}"
    )
    doubts = []
    if effect < _CLEAR * average.total_effect or average.total_effect <= 0:
        doubts.append("that is too little to tell one layer from another")
    # single states of the last token always give all back in the end, so only MLPs can be compared
    if kind == "mlp" and (rival := float(np.nan_to_num(average.at(kind, "last")).max())) > effect:
        doubts.append(f"MLPs at the prompt's last token give back more ({rival:.3f})")
    if average.facts < _FACTS:
        doubts.append(f"so few facts say little about a model (take {_FACTS} or more)")
    return Suggestion(layer, chosen, kind, effect, not doubts, "; but ".join((reason, *doubts[:1])) + _and(doubts[1:]))


def _and(more: Iterable[str]) -> str:
    return "".join(f", and {each}" for each in more)


def located_layers(trace: Trace, kind: str = "mlp", top: int = 5) -> frozenset[int]:
    """The ``top`` layers of one fact by indirect effect at the subject's last token (the lower of equal ones).

    Raises InputError for a kind that was not traced, or more layers than there are.
    """
    if not 1 <= top <= trace.num_layers:
        raise InputError(f"{top} layers cannot be chosen out of {trace.num_layers}")
    last = next(t for t in range(len(trace.tokens)) if place_of(trace, t) == "last_subject")
    order = np.argsort(-trace.effect(kind)[last], kind="stable")
    return frozenset(int(layer) for layer in order[:top])


@frozen
class RelativeSimilarity:
    """How much more alike related facts are located than any facts.

    Attributes:
        value: RSim, 0 to 1.
        related, all: mean similarity over pairs of related facts, and over all pairs.
        related_pairs, pairs: how many pairs these are.
    """

    value: float
    related: float
    all: float
    related_pairs: int
    pairs: int


def rsim(located: Sequence[frozenset[int]], groups: Sequence[Hashable]) -> RelativeSimilarity:
    """Relative similarity of located layers (Zhang et al. 2024, arXiv 2401.01286, on the effectiveness of locating).

    ``RSim = max((Sim_cand - Sim_all) / (1 - Sim_all), 0)``, where Sim of two facts is the overlap of their located
    sets, ``2 |A n B| / (|A| + |B|)``; Sim_cand is its mean over all unordered pairs of related facts (of one group,
    groups pooled), Sim_all over all unordered pairs. 1: related facts share their layers and others do not; 0: locating
    does not tell related facts from unrelated ones, also where all facts share all layers (Sim_all = 1).

    Args:
        located: for each fact the layers it was located in; see :func:`located_layers`.
        groups: for each fact what it is related by (its relation, its subject).

    Raises:
        InputError: not one group for each fact, an empty set, or no related pair.
    """
    if len(located) != len(groups):
        raise InputError(f"there are {len(located)} facts and {len(groups)} groups; give one group for each fact")
    if not all(located):
        raise InputError("a fact was located in no layer; give at least one for each")
    related: list[float] = []
    everything: list[float] = []
    for one, other in combinations(range(len(located)), 2):
        similarity = 2 * len(located[one] & located[other]) / (len(located[one]) + len(located[other]))
        everything.append(similarity)
        if groups[one] == groups[other]:
            related.append(similarity)
    if not related:
        raise InputError("no two facts are of one group, so nothing can be said of related ones; give related facts")
    among, overall = float(np.mean(related)), float(np.mean(everything))
    value = 0.0 if overall >= 1 else max((among - overall) / (1 - overall), 0.0)
    return RelativeSimilarity(value, among, overall, len(related), len(everything))
