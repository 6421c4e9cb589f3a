"""Training a MEND editor: gradients flow through a simulated edit into the nets.

Mitchell et al. 2022 (arXiv 2110.11309), section 3.3. In a step the base reads edits and unrelated prompts once, which
gives the factors of the edits' gradient and what the base says of the unrelated; the edited model then reads rephrased
and unrelated prompts once. The gradient that is edited with is a constant (first order).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from kedit_core.forward import Pair
from kedit_core.training import Stepped, TrainingContext
from kedit_methods_meta.edit_training import Batch, EditTrainer
from kedit_methods_meta.edited import edited_logits
from kedit_methods_meta.factors import Factors, pass_factors, weighted
from kedit_methods_meta.gathering import observe_everywhere
from kedit_methods_meta.hparams.mend import MendTrainingHyperParams
from kedit_methods_meta.losses import Reading, divergence, measured
from kedit_methods_meta.mend.editor import MendEditor
from kedit_methods_meta.pairs import instructed, right_aligned
from kedit_methods_meta.questions import questions


class MendTrainer(EditTrainer):
    """Trains the nets and step sizes of a :class:`MendEditor`.

    Memory beside the base: the editor four times (its gradients, Adam's two moments), and the activations of a
    micro-batch above the lowest edited weight.
    """

    hparams: MendTrainingHyperParams
    module: MendEditor

    def __init__(self, context: TrainingContext, hparams: MendTrainingHyperParams) -> None:
        super().__init__(context, hparams, hparams.editor, hparams.instruction)

    def make_editor(self, generator: torch.Generator) -> MendEditor:
        return MendEditor(self.places, self.hparams.editor, self.hparams.edit_lr, generator)

    def rates(self) -> Mapping[str, float]:
        """The step sizes have their own rate, in an optimiser group of their own."""
        return {"alpha": self.hparams.lr if self.hparams.lr_lr is None else self.hparams.lr_lr}

    # ------------------------------------------------------------------ steps
    def step(self, batch: Batch, learning: bool) -> Stepped:
        hparams, n = self.hparams, len(batch)
        inner, outer, locality = (self._pairs(batch, which) for which in ("inner", "outer", "locality"))
        group = torch.arange(n, device=self.context.forward.device) // hparams.n_edits
        factors, base = self._base_pass(inner, locality, group)
        if learning:
            observe_everywhere(self, self.module.observed(factors))
        edits = self.module({name: each.of(group) for name, each in factors.items()})
        asked = questions(self.context.forward, [*outer, *locality], [False] * n + [True] * n)
        logits = edited_logits(self.context.forward, asked, self.places, edits, group.repeat(2))
        new = asked.row < n
        said = Reading.of(logits[new], asked.tokens[new], asked.row[new])
        nll = said.nll(group)
        kept = ~new
        compared = asked.fed[kept] if self._as_easyedit else torch.ones_like(asked.fed[kept])
        moved = divergence(base[compared], logits[kept][compared], group[asked.row[kept][compared] - n])
        total = hparams.c_edit * nll + hparams.c_loc * moved
        known = kept & asked.asked
        values = {"nll/edit": said.surprise(), "edit/acc": said.all_right(), "edit/prob": said.probability()}
        if bool(known.any()):
            here = known[kept]
            before, after = (
                Reading.of(each[here], asked.tokens[known], asked.row[known]).all_right()
                for each in (base, logits[kept].detach())
            )
            values |= {"acc/pre": before, "acc/post": after}
        losses = {"edit": nll.detach(), "loc": moved.detach()}
        return Stepped(total=total, losses=losses, values=values | measured(total, losses, n))

    def _base_pass(
        self, inner: Sequence[Pair], locality: Sequence[Pair], group: Tensor
    ) -> tuple[dict[str, Factors], Tensor]:
        """Factors of the edits' gradient, and the base's logits at all positions of the unrelated prompts."""
        n = len(inner)
        asked = questions(self.context.forward, [*inner, *locality], [False] * n + [True] * n)
        mine = asked.row < n
        weight = torch.zeros(len(asked.row), dtype=torch.float64, device=asked.row.device)
        if self.hparams.reduction == "edit_mean":
            lengths = torch.tensor([len(pair.target_ids) for pair in inner], device=weight.device).double()
            weight[mine] = 1 / lengths[asked.row[mine]]
        else:  # the mean over a try's tokens
            tries = group[asked.row[mine]]
            weight[mine] = 1 / torch.bincount(tries).double()[tries]
        base: list[Tensor] = []
        factors = pass_factors(
            self.context.forward, asked, self.places, weighted(asked, weight), logits=lambda found: base.append(found)
        )
        # unrelated prompts have no gradient at all
        kept = {name: each.where(each.edit < n) for name, each in factors.items()}
        return kept, base[0][~mine]

    # ------------------------------------------------------------------ texts
    def _pairs(self, batch: Batch, which: str) -> list[Pair]:
        found = []
        for example in batch:
            prompt, answer = getattr(example, which)
            if which == "inner":
                prompt = instructed(self.hparams.instruction, prompt, example.request.meta)
            found.append(self.pair(prompt, answer))
        return found

    @property
    def _as_easyedit(self) -> bool:
        return self.hparams.compat == "easyedit" and not self.context.adapter.is_encoder_decoder

    def make_pair(self, prompt: str, answer: str) -> Pair:
        if self._as_easyedit:
            return right_aligned(self.context.tokens, prompt, answer)
        return super().make_pair(prompt, answer)
