"""LoRA and AdaLoRA: low-rank adapters trained on the new answers, through peft.

Hu et al. 2021 (arXiv 2106.09685); Zhang et al. 2023 (arXiv 2303.10512). The model is trained on as it is, with the
patches that are on it; each call makes adapters of its own, so sequential editing adds a patch for each round (the
published comparisons trained one adapter further instead, with a fresh Adam).

Memory beside the model: four numbers in float32 for each number of the adapters, and the activations of one chunk.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.errors import InputError, MethodError
from kedit_core.forward import frozen
from kedit_core.patches import EditPatch
from kedit_core.requests import EditRequest
from kedit_methods_finetune.hparams.lora import AdaLoraHyperParams, AdapterHyperParams, LoraHyperParams
from kedit_methods_finetune.lora.adapters import Adapters, SvdAdapters, require_peft
from kedit_methods_finetune.lora.targets import find_targets
from kedit_methods_finetune.lora.training import steps_of, train
from kedit_methods_finetune.questions import Fact, facts_of, warn_missed

_BYTES = 4 * 4  # of a trained number: itself, its gradient and Adam's two moments, in float32


class Lora:
    """The method ``lora``."""

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
            _facts(context, requests, hparams)

    @hookimpl
    def compute_patch(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: AdapterHyperParams
    ) -> EditPatch:
        """One low-rank delta for each adapter."""
        peft, facts = require_peft(context), _facts(context, requests, hparams)
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
        """The weights that will change, and the memory beside the model."""
        targets, facts = find_targets(context.adapter, hparams), _facts(context, requests, hparams)
        rank = _rank(hparams)
        numbers = sum(rank * (target.out + target.width) for target in targets)
        return {
            "places": [target.place for target in targets],
            "memory_bytes": _BYTES * numbers + _activations(context, facts, hparams),
            "notes": [
                f"{len(targets)} adapters of rank {rank}, {numbers} numbers; {hparams.num_steps} epochs over the "
                "requests of each round",
            ],
        }


class AdaLora(Lora):
    """The method ``adalora``."""

    adapters = SvdAdapters


def _facts(context: EditContext, requests: Sequence[EditRequest], hparams: AdapterHyperParams) -> list[Fact]:
    """The requests as ids. Raises InputError when one is longer than the model's positions."""
    facts, view = facts_of(context.tokens, requests, hparams.append_eos), context.adapter
    longest = max(_length(context, fact) for fact in facts)
    if not view.is_encoder_decoder and view.max_positions is not None and longest > view.max_positions:
        raise InputError(
            f"a prompt with its target is {longest} tokens long, and the model has {view.max_positions} positions; "
            "shorten it"
        )
    return facts


def _length(context: EditContext, fact: Fact) -> int:
    """Tokens that the edited stack reads: an encoder the prompt, a decoder all but the last target token too."""
    return len(fact.prompt) + (0 if context.adapter.is_encoder_decoder else len(fact.target) - 1)


def _rank(hparams: AdapterHyperParams) -> int:
    return hparams.init_rank if isinstance(hparams, AdaLoraHyperParams) else cast(LoraHyperParams, hparams).rank


def _activations(context: EditContext, facts: Sequence[Fact], hparams: AdapterHyperParams) -> int:
    """Roughly what one chunk's pass keeps for the backward pass: all blocks, and the logits."""
    view, size = context.adapter, min(hparams.batch_size, len(facts))
    tokens = size * max(_length(context, fact) for fact in facts)
    block = 16 * view.hidden_size + 5 * view.mlp_size(0)
    logits = size * max(len(fact.target) for fact in facts) * view.vocab_size * 4
    return int(4 * (tokens * block * view.num_layers + logits))
