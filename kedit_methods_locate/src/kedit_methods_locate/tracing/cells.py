"""Which states a cell (token, block) of a trace restores, and which cells need no run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from kedit_core.editing.progress import Step
from kedit_core.errors import InputError
from kedit_core.forward import Site
from kedit_methods_locate.tracing.runs import Runs, Write
from kedit_methods_locate.tracing.settings import KINDS, MODULES, Module, TraceSettings, severed_kind


def module_site(module: Module, layer: int) -> Site:
    """Where the output of a block's MLP or attention is read and written.

    The attention module's own output may hold more than goes into the residual stream (Bloom adds the residual in it);
    its projection's never does.
    """
    return Site(layer, "mlp") if module == "mlp" else Site(layer, "attn_out")


def window(layer: int, width: int, num_layers: int) -> range:
    """Blocks restored around ``layer``: ``[l - w // 2, l + ceil(w / 2))``, clipped at both ends of the model."""
    return range(max(0, layer - width // 2), min(num_layers, layer + math.ceil(width / 2)))


def writes_of(kind: str, layer: int, num_layers: int, width: int) -> tuple[Write, ...]:
    """What a cell of this kind writes at its token.

    A severed path restores the block's output and holds the module's outputs of all later blocks at the corrupted
    run's (what blocks up to ``layer`` wrote there, the restored state replaces).
    """
    block = Write(Site(layer, "block"))
    if kind == "block":
        return (block,)
    for module in MODULES:
        if kind == module:
            return tuple(Write(module_site(module, each)) for each in window(layer, width, num_layers))
        if kind == severed_kind(module):
            later = range(layer + 1, num_layers)
            return (block, *(Write(module_site(module, each), "corrupted") for each in later))
    raise InputError(f"{kind!r} is no kind of trace; there are {', '.join(KINDS)}, and severed ones")


def kinds_of(settings: TraceSettings) -> tuple[str, ...]:
    """The tables that these settings ask for."""
    return (*settings.kinds, *(severed_kind(module) for module in settings.severed))


def sites_of(settings: TraceSettings, num_layers: int) -> tuple[list[Site], list[Site]]:
    """States of the clean and of the corrupted run that all tables together write, each once."""
    width = settings.width(num_layers)
    found: dict[str, dict[Site, None]] = {"clean": {}, "corrupted": {}}
    for kind in kinds_of(settings):
        for layer in range(num_layers):
            for write in writes_of(kind, layer, num_layers, width):
                found[write.source][write.site] = None
    return list(found["clean"]), list(found["corrupted"])


@frozen(eq=False)
class Scores:
    """One table: ``[T, layers]`` mean probability of the answer over the samples, and mean log-probability."""

    probability: NDArray[np.float64]
    logprob: NDArray[np.float64]


class Tables:
    """Fills the tables of one prompt.

    Cells whose score is known are not run. In a decoder-only model nothing before the first corrupted token differs
    from the clean run, and what block L - 1 writes before the last token reaches nobody: both score as the baseline.
    The last token's state after the last block is the answer itself: it scores as the clean run. Windows that are the
    same after clipping are run once.
    """

    def __init__(self, runs: Runs, first: int, clean: float) -> None:
        """``first`` is the first corrupted token, ``clean`` the answer's log-probability in the clean run."""
        self._runs, self._clean = runs, clean
        self._layers, self._width = runs.view.num_layers, runs.width
        self._causal = not runs.view.is_encoder_decoder
        self._from = first if self._causal else 0
        self._known: dict[tuple[Write, ...], Scores] = {}

    def fill(self, kind: str, width: int, step: Step) -> Scores:
        """One table of ``kind`` with windows of ``width`` blocks."""
        columns = []
        for layer in range(self._layers):
            writes = writes_of(kind, layer, self._layers, width)
            if writes not in self._known:
                self._known[writes] = self._score(writes)
            columns.append(self._known[writes])
            step.advance()
        return Scores(
            np.stack([each.probability for each in columns], axis=1),
            np.stack([each.logprob for each in columns], axis=1),
        )

    def _score(self, writes: Sequence[Write]) -> Scores:
        """Scores of every token ``[T]`` with these states written there."""
        baseline = self._runs.baseline.double()
        probability = np.full(self._width, float(baseline.exp().mean()))
        logprob = np.full(self._width, float(baseline.mean()))
        end = self._width - 1
        ended = self._causal and writes[0] == Write(Site(self._layers - 1, "block"))
        useless = self._causal and all(write.site.layer == self._layers - 1 for write in writes)
        asked = [t for t in range(self._from, self._width) if not (useless and t < end) and not (ended and t == end)]
        if asked:
            found = self._runs.logprobs(writes, [(t,) for t in asked]).double()
            probability[asked] = found.exp().mean(1).numpy()
            logprob[asked] = found.mean(1).numpy()
        if ended:
            probability[end], logprob[end] = math.exp(self._clean), self._clean
        return Scores(probability, logprob)
