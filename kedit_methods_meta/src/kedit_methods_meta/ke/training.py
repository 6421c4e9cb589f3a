"""Training a KE editor: edits' loss under a bound on how far the answers to other prompts move.

De Cao et al. 2021 (arXiv 2104.08164), section 4.2, and its code; ``loss="mend"`` is the port in MEND's repository. In a
step the editor makes a separate update for each edit of the micro-batch, and the edited model reads, row by row under
its own edit, the edit, a rephrase of it, and unrelated prompts. The gradient that is edited with is a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import Pair
from kedit_core.training import BaseTrainer, Stepped, TrainingContext
from kedit_core.training.records import Asked, EditExample, Examples
from kedit_methods_meta.edit_training import KEPT
from kedit_methods_meta.edited import edited_logits
from kedit_methods_meta.factors import gradient_factors
from kedit_methods_meta.hparams.ke import KeTrainingHyperParams
from kedit_methods_meta.ke.condition import Condition, Sayings, condition_ids, condition_text
from kedit_methods_meta.ke.editor import KeEditor
from kedit_methods_meta.ke.measuring import Rows, measured
from kedit_methods_meta.ke.objective import Margin, bounded, smoothed_nll, weight_change
from kedit_methods_meta.ke.schedule import warm_linear
from kedit_methods_meta.losses import divergence, shares
from kedit_methods_meta.pairs import check_records, pair_of
from kedit_methods_meta.questions import questions
from kedit_methods_meta.saved_editor import warn_of_half_precision

_ALPHA, _WEIGHT_ALPHA = "alpha.kl", "alpha.weights"


@frozen(eq=False)
class KeBatch:
    """Edits, and for each of them (in their order) the same number of unrelated prompts with their answers."""

    examples: tuple[EditExample, ...]
    unrelated: tuple[tuple[Asked, ...], ...]


class KeTrainer(BaseTrainer[KeBatch]):
    """Trains the networks of a :class:`KeEditor`, and the multipliers of the bounds.

    Validated are the losses, what :func:`measured` tells, margins and multipliers.

    Memory beside the base: the editor four times (its gradients, the optimiser's two averages), and the
    activations of ``batch_size * (2 + unrelated)`` rows above the lowest edited weight.
    """

    hparams: KeTrainingHyperParams

    def __init__(self, context: TrainingContext, hparams: KeTrainingHyperParams) -> None:
        super().__init__(context, hparams)
        self.examples = Examples(context.requests, hparams)
        self.count = self.examples.count
        self._validating = Examples(context.validation, hparams, unrelated=context.requests)
        self.pair = lru_cache(KEPT)(self._pair)
        self.sayings = Sayings(context, KEPT)
        check_records(context, [*context.requests, *context.validation], self.pair)
        warn_of_half_precision(context)
        self.module = KeEditor.new(context.forward, hparams.editor, torch.Generator().manual_seed(context.seed))
        home = context.forward.device
        self.margins = {_ALPHA: Margin(hparams.margin, hparams.margin_min)}
        if hparams.weight_margin is not None:
            self.margins[_WEIGHT_ALPHA] = Margin(hparams.weight_margin, hparams.weight_margin_min)
        if hparams.loss == "mend":
            self.margins = {}
        self.alphas = {name: torch.ones((), device=home, requires_grad=True) for name in self.margins}

    # ------------------------------------------------------------------ data
    def draw(self, indices: Sequence[int], generator: torch.Generator) -> KeBatch:
        return self._with_unrelated(self.examples, self.examples.draw(indices, generator), generator)

    def validation(self) -> Sequence[KeBatch]:
        held = self._validating
        generator = torch.Generator().manual_seed(self.context.seed)
        batches = held.batches(self.hparams.batch_size, self.hparams.val_items, self.context.seed)
        return [self._with_unrelated(held, batch, generator) for batch in batches]

    def _with_unrelated(self, source: Examples, examples: Sequence[EditExample], generator: torch.Generator) -> KeBatch:
        more = self.hparams.unrelated - 1
        others = source.unrelated(examples, more * len(examples), generator)
        sets = [(each.locality, *others[i * more : (i + 1) * more]) for i, each in enumerate(examples)]
        return KeBatch(tuple(examples), tuple(sets))

    # ------------------------------------------------------------------ what is trained
    def parameters(self) -> Mapping[str, Tensor]:
        return {**dict(self.module.named_parameters()), **self.alphas}

    def rates(self) -> Mapping[str, float]:
        """The multipliers have their own rate."""
        return dict.fromkeys(self.alphas, self.hparams.alpha_lr)

    def state(self) -> Mapping[str, Any]:
        return {name: margin.value for name, margin in self.margins.items()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, margin in self.margins.items():
            margin.value = float(state[name])

    def editor(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
        config = {**self.module.config(), "trained_as": "ke-efk" if self.hparams.loss == "mend" else "ke"}
        return self.module.tensors(), config

    # ------------------------------------------------------------------ optimisation
    def optimizer(self, groups: Any) -> torch.optim.Optimizer:
        """Centred RMSprop; Adam for ``loss="mend"``."""
        if self.hparams.loss == "mend":
            return torch.optim.Adam(groups)
        return torch.optim.RMSprop(groups, centered=True)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler | None:
        """All rates, the multipliers' too, rise and fall in straight lines; constant for ``loss="mend"``."""
        if self.hparams.loss == "mend":
            return None
        return warm_linear(optimizer, self.hparams.warmup, self.hparams.updates)

    def after_update(self) -> None:
        """Keep the multipliers between 0 and ``alpha_max``."""
        limit = self.hparams.alpha_max
        with torch.no_grad():
            for alpha in self.alphas.values():
                alpha.clamp_(0, limit)
        if any(float(alpha.detach()) == limit for alpha in self.alphas.values()):
            self.context.warn(
                "alpha_at_limit", limit, "raise margin, or unrelated and batch_size",
                "a multiplier of the bounds is at its greatest value, and answers move further than the margin",
            )  # fmt: skip

    def after_validation(self, values: Mapping[str, float]) -> None:
        """Tighten the bounds when more than ``margin_at`` of the edits succeed."""
        if values["edit/acc"] > self.hparams.margin_at:
            for margin in self.margins.values():
                margin.tighten(self.hparams.margin_decay)

    # ------------------------------------------------------------------ steps
    def run_step(self, batch: KeBatch) -> Stepped:
        hparams, forward = self.hparams, self.context.forward
        inner = [self.pair(*each.inner) for each in batch.examples]
        factors = gradient_factors(forward, inner, self.module.places, check=False)  # what is not finite is left out
        edits = self.module(self._conditions(batch.examples, inner), factors)
        rows = self._rows(batch, inner)
        told = questions(forward, rows.pairs, [self._whole and i >= rows.told for i in range(len(rows.pairs))])
        logits = edited_logits(forward, told, self.module.places, edits, rows.group)
        new, kept = told.row < rows.told, told.row >= rows.told
        base = self._base(rows)
        group = rows.group.to(told.row.device)[told.row]
        moved = divergence(base, logits[kept], group[kept])
        if hparams.loss == "mend":
            outer = new & rows.outer[told.row]
            nll = self._mean(smoothed_nll(logits[outer], told.tokens[outer].to(logits.device), 0.0), group[outer])
            total = hparams.c_edit * nll + hparams.c_loc * moved
        else:
            each = smoothed_nll(logits[new], told.tokens[new].to(logits.device), hparams.smoothing)
            nll = self._mean(each, group[new])
            total = nll + bounded(self.alphas[_ALPHA], moved, self.margins[_ALPHA].value)
        losses = {"edit": nll.detach(), "kl": moved.detach()}
        if _WEIGHT_ALPHA in self.alphas:
            change = weight_change(edits, len(inner))
            total = total + bounded(self.alphas[_WEIGHT_ALPHA], change, self.margins[_WEIGHT_ALPHA].value)
            losses["weights"] = change.detach()
        named = {"total": total, "edit": nll, "loc": moved}
        values = measured(told, rows, logits.detach(), base)
        values |= {f"loss/{name}": (float(loss.detach()), 1.0) for name, loss in named.items()}
        for name, margin in self.margins.items():
            kind = name.removeprefix("alpha.")
            values[f"margin/{kind}"] = (margin.value, 1.0)
            values[f"alpha/{kind}"] = (float(self.alphas[name].detach()), 1.0)
        return Stepped(total=total, losses=losses, values=values)

    @property
    def _whole(self) -> bool:
        """Whether unrelated prompts are compared at every token, as MEND's loss does, not only where answers are."""
        return self.hparams.loss == "mend"

    def _rows(self, batch: KeBatch, inner: Sequence[Pair]) -> Rows:
        """All pairs an edited model reads; a rephrase that is the edit's own prompt is left out."""
        reworded = [(i, self.pair(*each.outer)) for i, each in enumerate(batch.examples) if each.outer != each.inner]
        others = [(i, asked) for i, some in enumerate(batch.unrelated) for asked in some]
        kept = self._kept([asked for _, asked in others])
        placed = [*enumerate(inner), *reworded, *((i, pair) for (i, _), pair in zip(others, kept, strict=True))]
        group = torch.tensor([i for i, _ in placed], device=self.context.forward.device)
        outer = torch.ones(len(placed), dtype=torch.bool, device=group.device)
        outer[[i for i, _ in reworded]] = False
        return Rows([pair for _, pair in placed], group, len(inner), len(inner) + len(reworded), outer)

    def _kept(self, unrelated: Sequence[Asked]) -> list[Pair]:
        """Unrelated prompts with the answers at which they are compared."""
        pairs = [self.pair(*asked) for asked in unrelated]
        if self._whole or self.hparams.unrelated_answers == "given":
            return pairs
        found = []
        for (prompt, _), pair, said in zip(unrelated, pairs, self.sayings.ids(pairs), strict=True):
            ends = self.pair(prompt, "").target_ids  # of an answer that ends with a token
            own = (*said[: len(pair.target_ids) - len(ends)], *ends)
            found.append(Pair(pair.prompt_ids, own) if own else pair)
        return found

    def _base(self, rows: Rows) -> Tensor:
        """The base's logits where the unrelated are compared."""
        asked = questions(self.context.forward, rows.pairs[rows.told :], self._whole)
        with torch.no_grad():
            logits = self.context.forward.run(asked.batch, logits_at=asked.cells).logits
        if logits is None:
            raise RuntimeError("a run with logits_at gives logits")
        return logits

    @staticmethod
    def _mean(each: Tensor, group: Tensor) -> Tensor:
        """Mean over edits of the mean over each one's tokens."""
        return (each * shares(group.to(each.device)).to(each.dtype)).sum()

    # ------------------------------------------------------------------ texts
    def _conditions(self, examples: Sequence[EditExample], inner: Sequence[Pair]) -> list[Condition]:
        texts = [
            condition_text(said, new, prompt)
            for said, (prompt, new) in zip(self.sayings.of(inner), (each.inner for each in examples), strict=True)
        ]
        return [condition_ids(self.context, text, self.hparams.condition_tokens) for text in texts]

    def _pair(self, prompt: str, answer: str) -> Pair:
        return pair_of(self.context.tokens, prompt, answer, self.hparams.append_eos)
