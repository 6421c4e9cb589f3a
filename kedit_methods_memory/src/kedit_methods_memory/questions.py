"""Facts as one batch: where the model is asked, for which tokens, and the loss of each.

The loss of a fact is the mean negative log-likelihood over its target's tokens, taken in float32 or wider.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing.checks import row_length
from kedit_core.forward import Batch, ForwardTools
from kedit_core.models import ModelView
from kedit_methods_memory.facts import Fact


@frozen(eq=False)
class Questions:
    """Some facts as rows padded on the right.

    Attributes:
        batch: a decoder is fed prompt and target but its last token (all of it with ``whole``); an encoder the prompt,
            and its decoder the target shifted right.
        ends: ``[rows]`` column of each prompt's last token.
        cells: ``[n, 2]`` (row, column) pairs, one for each target token, whose next-token logits are read.
        token: ``[n]`` the target token asked for there.
        share: ``[rows, n]`` how much it counts in each row's loss: 1/T for the row's own T tokens, else 0.
    """

    batch: Batch
    ends: Tensor
    cells: Tensor
    token: Tensor
    share: Tensor

    @classmethod
    def of(cls, forward: ForwardTools, facts: Sequence[Fact], whole: bool = False) -> Questions:
        """Lay facts out as rows; all tensors are where the model's inputs go."""
        two_stacks = forward.view.is_encoder_decoder
        fed = [() if two_stacks else fact.target if whole else fact.target[:-1] for fact in facts]
        batch = forward.batch(
            [(*fact.prompt, *more) for fact, more in zip(facts, fed, strict=True)],
            targets=[fact.target for fact in facts],
            prompt_lengths=[len(fact.prompt) for fact in facts],
        )
        ends = [len(fact.prompt) - 1 for fact in facts]
        cells = [
            (row, t if two_stacks else ends[row] + t) for row, fact in enumerate(facts) for t in range(len(fact.target))
        ]
        lengths = torch.tensor([len(fact.target) for fact in facts])
        laid = (
            torch.tensor(ends),
            torch.tensor(cells),
            torch.tensor([token for fact in facts for token in fact.target]),
            torch.diag(1 / lengths.double()).repeat_interleave(lengths, dim=1),
        )
        home = batch.input_ids.device
        return cls(batch, *(each.to(home) for each in laid))

    def losses(self, logits: Tensor) -> Tensor:
        """``[rows]`` each fact's loss, from logits ``[n, vocabulary]`` at ``cells``."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        token, share = self.token.to(wide.device), self.share.to(wide)
        return -(share @ wide.gather(1, token.unsqueeze(1)).squeeze(1))


def bytes_needed(view: ModelView, fact: Fact, first: int) -> int:
    """Roughly what a fact's row needs in a training through blocks ``first`` and later: activations, prefix, logits."""
    width, inner = view.hidden_size, view.mlp_size(0)
    blocks = view.num_layers - first
    if view.is_encoder_decoder:
        blocks += len(view.head_blocks)
    tokens = row_length(view, fact.prompt, fact.target) + (len(fact.target) if view.is_encoder_decoder else 0)
    return 4 * (tokens * blocks * (16 * width + 5 * inner) + 3 * len(fact.target) * view.vocab_size)


def grouped(view: ModelView, facts: Sequence[Fact], first: int, budget: int | None) -> list[list[int]]:
    """Facts by number, in groups that fit ``budget`` bytes (one fact at least), those of similar length together."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(facts)), key=lambda i: row_length(view, facts[i].prompt, facts[i].target)):
        longest = max(longest, bytes_needed(view, facts[index], first))
        if not groups or (budget is not None and longest * (len(groups[-1]) + 1) > budget):
            groups.append([])
            longest = bytes_needed(view, facts[index], first)
        groups[-1].append(index)
    return groups
