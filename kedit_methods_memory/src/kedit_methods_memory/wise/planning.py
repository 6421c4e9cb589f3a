"""What an edit with WISE would take."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kedit_core.editing import EditContext
from kedit_core.forward import evaluating
from kedit_core.requests import EditRequest
from kedit_methods_memory.beneath import beneath
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.projections import Projection
from kedit_methods_memory.wise.activation import phi_name, phi_of
from kedit_methods_memory.wise.irrelevant import own_texts
from kedit_methods_memory.wise.lesson import lesson_of
from kedit_methods_memory.wise.losses import Margins
from kedit_methods_memory.wise.training import Trainer

_CONTEXT = "I have read this before. {}"  # about as long as one that the model writes
_TEXT = "This is a text about something else, and as long as many sentences are."
_BYTES = 4  # of an entry


def planned(
    context: EditContext, requests: Sequence[EditRequest], hparams: WiseHyperParams, place: Projection
) -> Mapping[str, Any]:
    """The projection, at most how long it takes from two steps, the memory, and the size of the patch."""
    # in batch all requests come in one call; else they are taken to come one by one
    batch = context.scenario == "batch"
    rounds = 1 if batch else len(requests)
    entries = place.out * place.width
    seconds = _step_seconds(context, requests if batch else requests[:1], hparams, place)
    kept = _memories(1 if context.scenario == "single" else len(requests), hparams)
    density = min(1.0, hparams.rho * (hparams.merged_shards if kept > 1 else 1))
    one = entries // 8 + int(_BYTES * density * entries)
    return {
        "places": [place.name],
        "seconds": seconds * hparams.n_iter * rounds,
        "memory_bytes": (5 + kept) * _BYTES * entries + context.memory_budget,
        "patch_bytes": one * (len(requests) if context.scenario == "single" else kept),
        "notes": [
            f"at most {hparams.n_iter} steps for each of {rounds} rounds, {seconds:.2g} s each; training ends sooner "
            "when the loss is low and still",
            f"at most {kept} side memories of {entries} entries each, of which {hparams.rho:.0%} may differ from the "
            "main one (more where shards were merged)",
            "taking one fact out of the patch trains all others again",
        ],
    }


def _memories(edits: int, hparams: WiseHyperParams) -> int:
    """How many side memories there are after so many edits one by one, at most."""
    merges, rest = divmod(edits, hparams.merge_freq)
    merged = merges if hparams.retrieve else min(merges, 1)
    return merged + -(-rest // hparams.save_freq)


def _step_seconds(
    context: EditContext, requests: Sequence[EditRequest], hparams: WiseHyperParams, place: Projection
) -> float:
    count = 1 + sum(count for _, count in hparams.context_lengths)
    templates = hparams.context_templates or ("{}", *[_CONTEXT] * (count - 1))
    texts = [own_texts(request) or (_TEXT,) * hparams.irrelevant_texts for request in requests]
    phi = phi_of(phi_name(context.adapter)) if hparams.act == "phi" else None
    with beneath(context) as forward, evaluating(context.model):
        lesson = lesson_of(forward, place, requests, templates, texts, context.memory_budget)
        trainer = Trainer(lesson, Margins.of(hparams), phi)
        value = lesson.parts[0].read.value
        delta = torch.zeros((place.out, place.width), dtype=value.dtype, device=value.device)
        trainer.gradient(delta)
        started = time.perf_counter()
        trainer.gradient(delta)
        if delta.device.type != "cpu":
            torch.accelerator.synchronize(delta.device)
        return time.perf_counter() - started
