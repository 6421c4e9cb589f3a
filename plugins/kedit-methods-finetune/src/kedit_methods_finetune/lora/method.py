"""LoRA and AdaLoRA: low-rank adapters trained on the new answers, through peft.

Hu et al. 2021 (arXiv 2106.09685); Zhang et al. 2023 (arXiv 2303.10512). The model is trained on as it is, with the
patches that are on it; each call makes adapters of its own, so sequential editing adds a patch for each round (the
published comparisons trained one adapter further instead, with a fresh Adam).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import row_length, warn_missed
from kedit_core.errors import MethodError
from kedit_core.forward import frozen
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_finetune.guards import warn_large
from kedit_methods_finetune.hparams.lora import AdaLoraHyperParams, AdapterHyperParams, LoraHyperParams
from kedit_methods_finetune.lora.adapters import Adapters, SvdAdapters, require_peft
from kedit_methods_finetune.lora.targets import Target, find_targets
from kedit_methods_finetune.lora.training import steps_of, timed_step, train
from kedit_methods_finetune.questions import Fact, fitting
from kedit_methods_finetune.timing import TRIED

_COPIES = 4  # of a trained number: itself, its gradient and Adam's two moments
_IMPORTANCES = 3  # more where ranks are taken away: peft's, smoothed, and their uncertainty


class Lora:
    """LoRA: ``W + alpha/rank * B A`` for each chosen projection, trained with Adam.

    Hu et al. 2021 (arXiv 2106.09685), section 4.1. Memory beside the model, for N = rank (in + out) numbers summed over
    the projections: 16 N bytes (a number, its gradient and Adam's two moments, in float32; twice that for a float64
    model), and the activations of one chunk in all blocks. The patch holds 4 N bytes; a sequence of n rounds n times
    that.
    """

    adapters: type[Adapters] = Adapters

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse, before any work, targets that the model does not have, facts too long for it, and a missing peft.

        Raises InputError, MissingExtraError; requests stay as they are.
        """
        require_peft(context)
        if context.hparams is not None:
            hparams = cast(AdapterHyperParams, context.hparams)
            find_targets(context.adapter, hparams)
            fitting(context, requests, hparams.append_eos)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: AdapterHyperParams
    ) -> EditPatch:
        """One low-rank delta for each adapter."""
        peft, facts = require_peft(context), fitting(context, requests, hparams.append_eos)
        targets = find_targets(context.adapter, hparams)
        # peft freezes the weights it adapts, so the flags are kept around all of it
        with frozen(context.model):
            adapters = self.adapters(peft, targets, hparams, context.generator, steps_of(len(facts), hparams))
            with adapters.on(context.model):
                trained = train(context.forward, adapters, facts, hparams, context.progress)
        deltas = adapters.deltas()
        if not deltas:
            raise MethodError("training has left no adapter with a rank of its own; raise num_steps, lr or target_rank")
        warn_missed(context, trained.losses, "raise num_steps, lr or rank, or target more projections")
        warn_large(context, deltas, "lower lr, num_steps or alpha, or target other projections")
        state = {
            "epochs": list(trained.epochs),
            "steps": trained.steps,
            "edits": [{"loss": loss} for loss in trained.losses],
        }
        return context.new_patch(deltas, requests, state_config=state)

    @hookimpl
    def plan(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: AdapterHyperParams
    ) -> Mapping[str, Any]:
        """The weights that will change, memory and size of the file, and at most how long it takes, from one step."""
        targets, facts = find_targets(context.adapter, hparams), fitting(context, requests, hparams.append_eos)
        # in batch all requests come in one call; else they are taken to come one by one
        rounds = 1 if context.scenario == "batch" else len(facts)
        size = min(hparams.batch_size, len(facts)) if rounds == 1 else 1
        steps = steps_of(len(facts) // rounds, hparams)
        rank, kept = _ranks(hparams)
        numbers = sum(rank * (target.out + target.width) for target in targets)
        stored = sum(rank * (target.out + target.width) * _itemsize(target) for target in targets)
        copies = _COPIES + (_IMPORTANCES if kept < rank else 0)
        seconds = self._timed(context, targets, facts[:size], hparams, steps)
        return {
            "places": [target.place for target in targets],
            "memory_bytes": copies * stored + _activations(context, facts, size),
            # of ranks that are taken away, the mean is known
            "patch_bytes": rounds * (stored // rank * kept),
            "seconds": seconds * steps * rounds,
            "notes": [
                f"{len(targets)} adapters of rank {rank}, {numbers} numbers; {hparams.num_steps} epochs over the "
                f"requests of each round, {seconds:.2g} s a step",
            ],
        }

    def _timed(
        self,
        context: EditContext,
        targets: Sequence[Target],
        facts: Sequence[Fact],
        hparams: AdapterHyperParams,
        steps: int,
    ) -> float:
        """Seconds of a step on these facts, with adapters that are thrown away."""
        with frozen(context.model):
            made = self.adapters(require_peft(context), targets, hparams, context.generator, max(steps, TRIED))
            with made.on(context.model):
                return timed_step(context.forward, made, facts, hparams)


class AdaLora(Lora):
    """AdaLoRA: ``W + alpha/init_rank * B diag(E) A``, ranks taken away where they matter least, through peft.

    Zhang et al. 2023 (arXiv 2303.10512). Memory beside the model, for N = init_rank (in + out) numbers summed over the
    projections: 16 N bytes, 12 N more for the smoothed importances (not with ``parity``), and the activations of one
    chunk in all blocks. The patch holds 4 N target_rank / init_rank bytes (with ``parity`` 4 N); a sequence of n
    rounds n times that.
    """

    adapters = SvdAdapters


def _ranks(hparams: AdapterHyperParams) -> tuple[int, int]:
    """Rank of an adapter in training, and on average in the end."""
    if isinstance(hparams, AdaLoraHyperParams):
        return hparams.init_rank, hparams.init_rank if hparams.parity else hparams.target_rank
    rank = cast(LoraHyperParams, hparams).rank
    return rank, rank


def _itemsize(target: Target) -> int:
    """Bytes of an adapter's number: float32, or the weight's dtype where that is wider."""
    stored = cast(Tensor, target.module.weight).dtype
    return torch.promote_types(stored, torch.float32).itemsize  # which of a whole number is float32


def _activations(context: EditContext, facts: Sequence[Fact], size: int) -> int:
    """Roughly what a pass of ``size`` facts keeps for the backward pass: all blocks, and the logits."""
    view = context.adapter
    tokens = size * max(row_length(view, fact.prompt, fact.target) for fact in facts)
    block = 16 * view.hidden_size + 5 * view.mlp_size(0)
    logits = size * max(len(fact.target) for fact in facts) * view.vocab_size * 4
    return int(4 * (tokens * block * view.num_layers + logits))
