"""The methods ``ft_l``, ``ft_m`` and ``ft_bf``: plain fine-tuning of a few weights, as a dense delta."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch

from kedit_core.contract import hookimpl
from kedit_core.editing import EditContext
from kedit_core.editing.checks import warn_missed
from kedit_core.forward import evaluating
from kedit_core.patches import DenseDelta, EditPatch, PrivateRequests
from kedit_core.requests import EditRequest
from kedit_methods_finetune.ft.batches import minibatches, step_bytes
from kedit_methods_finetune.ft.limits import Limits, settled
from kedit_methods_finetune.ft.places import places_of
from kedit_methods_finetune.ft.training import Trained, Trainer, limits_of, train
from kedit_methods_finetune.guards import warn_large
from kedit_methods_finetune.hparams import FtBfHyperParams, FtHyperParams
from kedit_methods_finetune.questions import Fact, facts_of, fitting
from kedit_methods_finetune.timing import seconds_of

_STUCK = 0.5  # share of entries that a bound leaves no room


class FineTuning:
    """Adam on the chosen weights until the new answers are likely; the patch is how far they moved.

    Memory beside the model, for P trained parameters stored in b bytes: P (2 b + 20) at most (the weights and their
    gradients, float32 masters with theirs, Adam's two moments, the delta), with a norm constraint P (2 b + 24) more
    (its ends, and float64 while they are found), and the context's memory budget for activations and what is kept from
    step to step. The patch holds 4 P bytes; a sequence of n rounds holds n times that.
    """

    @hookimpl
    def prepare_requests(self, context: EditContext, requests: Sequence[EditRequest]) -> None:
        """Refuse layers, parts and weights that cannot be trained and facts too long for the model, before any work.

        Raises InputError; requests stay as they are.
        """
        if context.hparams is not None:
            hparams = cast(FtHyperParams, context.hparams)
            places_of(context.adapter, hparams)
            fitting(context, requests, hparams.append_eos)

    @hookimpl
    def compute_patch(self, context: EditContext, requests: Sequence[EditRequest], hparams: FtHyperParams) -> EditPatch:
        """One dense delta for each trained parameter."""
        places = places_of(context.adapter, hparams)
        earlier = self.earlier(context, requests, hparams)
        facts = facts_of(context.tokens, [*earlier, *requests], hparams.append_eos)
        trained = train(context, places, facts, hparams, shuffle=self.shuffles(hparams))
        deltas = {name: _dense(context, name, trained) for name in places}
        operations = list(deltas.values())
        if trained.limits:
            operations = settled(context, deltas, trained.limits)
            _warn_stuck(context, trained.limits)
        losses = trained.losses[len(earlier) :]
        warn_missed(context, losses, "raise num_steps, lr or norm_constraint, or choose another layer")
        warn_large(context, operations, "lower lr or num_steps, raise stop_loss, or set or lower norm_constraint")
        state: dict[str, Any] = {
            "epochs": list(trained.epochs),
            "steps": trained.steps,
            "edits": [{"loss": loss} for loss in losses],
        }
        if trained.limits:
            state["saturated"] = trained.saturated
        if earlier:
            state["replayed"] = len(earlier)
        return context.new_patch(operations, requests, state_config=state)

    @hookimpl
    def plan(self, context: EditContext, requests: Sequence[EditRequest], hparams: FtHyperParams) -> Mapping[str, Any]:
        """The weights that will change, memory and size of the file, and at most how long it takes, from one step."""
        places = places_of(context.adapter, hparams)
        facts = facts_of(context.tokens, requests, hparams.append_eos)
        # in batch all requests come in one call; else they are taken to come one by one
        rounds = 1 if context.scenario == "batch" else len(facts)
        size = min(hparams.batch_size, len(facts)) if rounds == 1 else 1
        seconds, way = _timed_step(context, places, facts[:size], hparams)
        steps = hparams.num_steps * math.ceil(len(facts) / size)
        parameters = dict(context.model.named_parameters())
        trained = sum(parameters[name].numel() for name in places)
        patch = sum(parameters[name].numel() * _wide(parameters[name].dtype).itemsize for name in places)
        stored = sum(parameters[name].nbytes for name in places)
        weights = 2 * stored + 20 * trained
        if hparams.norm_constraint is not None:
            weights += 2 * stored + 24 * trained
        longest = max(facts, key=lambda fact: len(fact.prompt) + len(fact.target))
        step = size * step_bytes(context.adapter, longest, len(longest.prompt) + len(longest.target))
        return {
            "places": list(places),
            "memory_bytes": weights + min(step, context.memory_budget),
            "patch_bytes": rounds * patch,
            "seconds": seconds * steps,
            "notes": [
                f"at most {hparams.num_steps} epochs of {math.ceil(len(facts) / size)} steps, {seconds:.2g} s each; "
                f"training ends as soon as the loss is below {hparams.stop_loss}",
                f"each step runs {way}; a patch holds {patch / 1e6:.1f} MB",
            ],
        }

    def shuffles(self, hparams: FtHyperParams) -> bool:
        """Whether the order of the facts is random."""
        return False

    def earlier(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: FtHyperParams
    ) -> list[EditRequest]:
        """Facts of earlier rounds that are learnt again in this one."""
        return []


class FtL(FineTuning):
    """FT-L: all tokens of the target asked for at the prompt's last token, weights kept within a bound.

    Zhu et al. 2020 (arXiv 2012.00363), as the baseline FT+L of Meng et al. 2022 (arXiv 2202.05262). Without a bound
    this is their FT. A baseline of the literature rather than a method to use: later tokens of a target are never
    taught in their place.

    Memory beside the model, for P trained numbers stored in b bytes: P (2 b + 20) bytes, P (2 b + 24) more with the
    bound, and the context's memory budget; the patch holds 4 P (see :class:`FineTuning`).
    """


class FtM(FineTuning):
    """FT-M: each token of the target asked for in its place, prompt and padding masked; the baseline to compare with.

    The corrected objective of EasyEdit (2024). Requests of a call are taken in order, ``batch_size`` at a time.

    Memory beside the model, for P trained numbers stored in b bytes: P (2 b + 20) bytes and the context's memory
    budget, however many the requests; the patch holds 4 P (see :class:`FineTuning`).
    """


class FtBf(FineTuning):
    """LocFT-BF: FT-M's loss on one well-chosen layer, epoch after epoch over all facts in mini-batches.

    Yang et al. 2025 (arXiv 2509.22072). Breadth-first means that every epoch sees every fact once; depth-first, as
    fine-tuning is usually run in comparisons, makes all steps on one fact before the next and so forgets it again. What
    counts is how many facts come in one call: scenario ``batch``, or ``sequential`` with a large ``batch_size``. Each
    round tunes on its own facts alone, so rounds follow one another depth-first. With ``replay`` the facts of earlier
    patches of this method that are still on the model join the epochs (an earlier fact with the same prompt as a new
    one does not), and a sequence of single facts is breadth-first too, at the price of rounds that grow. A private
    patch cannot be replayed: warning ``private_facts``.

    Memory beside the model, for P trained numbers stored in b bytes: P (2 b + 20) bytes and the context's memory
    budget, however many the requests, and with ``replay`` the ids of all facts; the patch holds 4 P (see
    :class:`FineTuning`).
    """

    def shuffles(self, hparams: FtHyperParams) -> bool:
        """As set."""
        return cast(FtBfHyperParams, hparams).shuffle

    def earlier(
        self, context: EditContext, requests: Sequence[EditRequest], hparams: FtHyperParams
    ) -> list[EditRequest]:
        """With ``replay``: the facts of this method's patches on the stack, the last one of each prompt."""
        if not cast(FtBfHyperParams, hparams).replay or context.method is None:
            return []
        new = {request.prompt for request in requests}
        found: dict[str, EditRequest] = {}
        for entry in context.stack.patches:
            if entry.patch.method.name != context.method.name:
                continue
            if isinstance(entry.patch.requests, PrivateRequests):
                context.warn(
                    "private_facts",
                    float(entry.patch.requests.count),
                    "apply the patch that still holds its requests",
                    f"the facts of patch {entry.patch.id[:12]} are private, so they were not replayed and may be lost",
                )
                continue
            for fact in entry.patch.requests:
                if fact["prompt"] not in new:
                    found[fact["prompt"]] = EditRequest(prompt=fact["prompt"], target_new=fact["target_new"])
        return list(found.values())


def _dense(context: EditContext, name: str, trained: Trained) -> DenseDelta:
    delta = trained.deltas[name]
    return DenseDelta(name, delta.T if context.adapter.layout(name) == "in_out" else delta)


def _warn_stuck(context: EditContext, limits: Mapping[str, Limits]) -> None:
    """Warn ``bound_below_precision`` when most entries cannot move: the dtype's next number is beyond the bound."""
    stuck = max(limit.stuck for limit in limits.values())
    if stuck > _STUCK:
        context.warn(
            "bound_below_precision",
            stuck,
            "raise norm_constraint, or load the model in float32",
            f"the norm constraint leaves {stuck:.0%} of a weight's entries no room in the dtype they are stored in",
        )


def _timed_step(
    context: EditContext, places: Sequence[str], facts: Sequence[Fact], hparams: FtHyperParams
) -> tuple[float, str]:
    """Seconds of a step on these facts (the shorter of two, after one that warms up), and what a step runs."""
    limits = limits_of(context, places, hparams)
    with context.trainable(places) as masters, evaluating(context.model):
        (batch,) = minibatches(context, masters, facts, range(len(facts)), hparams)
        trainer = Trainer(masters, limits, hparams, len(facts))
        seconds = seconds_of(lambda: trainer.step(batch), masters[places[0]].device)
        return seconds, batch.parts[0].path.told


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What a delta of a weight of this dtype is stored in."""
    return torch.promote_types(dtype, torch.float32)
