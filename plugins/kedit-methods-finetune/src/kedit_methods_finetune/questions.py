"""Facts as token ids, and the loss of each: what fine-tuning asks of a model.

Specification: fine-tuning, sections 2 and 3. The loss of a fact is the mean over its target's tokens, so long targets
weigh as much as short ones; it is taken in float32, or wider where the model is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.editing import EditContext
from kedit_core.editing.checks import refuse_long, row_length
from kedit_core.errors import InputError
from kedit_core.forward import Batch, ForwardTools, Side, TokenBoundary
from kedit_core.requests import EditRequest
from kedit_methods_finetune.hparams.ft import Objective


@frozen
class Fact:
    """A prompt and what should follow it, as ids."""

    prompt: tuple[int, ...]
    target: tuple[int, ...]


def facts_of(tokens: TokenBoundary, requests: Sequence[EditRequest], append_eos: bool = False) -> list[Fact]:
    """Requests as ids; with ``append_eos`` each target ends with the tokenizer's end-of-sequence token.

    Raises InputError when the tokenizer has no such token.
    """
    end: tuple[int, ...] = ()
    if append_eos:
        if tokens.tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no end-of-sequence token to append; set append_eos to false")
        end = (int(tokens.tokenizer.eos_token_id),)
    pairs = [tokens.pair(request.prompt, request.target_new) for request in requests]
    return [Fact(pair.prompt_ids, (*pair.target_ids, *end)) for pair in pairs]


def fitting(context: EditContext, requests: Sequence[EditRequest], append_eos: bool = False) -> list[Fact]:
    """:func:`facts_of`, refused where the model has too few positions for one (also by rotary models).

    The whole row counts for every objective, since the answer will be asked for.

    Raises RequestError naming each such request with its length.
    """
    facts, view = facts_of(context.tokens, requests, append_eos), context.adapter
    refuse_long(context, requests, [row_length(view, fact.prompt, fact.target) for fact in facts])
    return facts


@frozen(eq=False)
class Questions:
    """Some facts as one batch: where the model is asked, and for which tokens.

    Attributes:
        batch: the rows. A decoder is fed prompt and target but its last token (``prompt_last``: the prompt alone); an
            encoder-decoder's encoder the prompt, and its decoder the target shifted right (or its start alone).
        cells: ``[n, 2]`` (row, column) pairs whose next-token logits are read.
        cell: ``[m]`` for each asked token, the cell where it is asked for.
        token: ``[m]`` its id.
        share: ``[rows, m]`` how much it counts in each row's loss: 1/T for the row's own T tokens, else 0.

    All are where the batch is, so that questions asked again and again are not sent there again.
    """

    batch: Batch
    cells: Tensor
    cell: Tensor
    token: Tensor
    share: Tensor

    @classmethod
    def of(cls, forward: ForwardTools, facts: Sequence[Fact], objective: Objective, side: Side = "right") -> Questions:
        """Lay facts out as rows padded on one side; masks, never ids, tell padding from text."""
        two_stacks, bag = forward.view.is_encoder_decoder, objective == "prompt_last"
        fed = [() if two_stacks or bag else fact.target[:-1] for fact in facts]
        pad = (forward.boundary.pad_id,)
        batch = forward.batch(
            [(*fact.prompt, *more) for fact, more in zip(facts, fed, strict=True)],
            side=side,
            # what a decoder's only input comes before does not matter: it is fed its start token
            targets=[pad if bag else fact.target for fact in facts],
            prompt_lengths=[len(fact.prompt) for fact in facts],
        )
        starts = batch.starts.tolist()
        cells: list[tuple[int, int]] = []
        cell: list[int] = []
        for row, fact in enumerate(facts):
            first = 0 if two_stacks else starts[row] + len(fact.prompt) - 1
            here = len(cells)
            cells += [(row, first)] if bag else [(row, first + t) for t in range(len(fact.target))]
            cell += [here] * len(fact.target) if bag else range(here, len(cells))
        lengths = torch.tensor([len(fact.target) for fact in facts])
        share = torch.diag(1 / lengths.double()).repeat_interleave(lengths, dim=1)
        token = torch.tensor([i for fact in facts for i in fact.target])
        home = batch.input_ids.device
        laid = (torch.tensor(cells), torch.tensor(cell), token, share)
        return cls(batch, *(each.to(home) for each in laid))

    def losses(self, logits: Tensor) -> Tensor:
        """``[rows]`` each fact's loss, from logits ``[n, vocabulary]`` at ``cells``."""
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
        asked = wide[self.cell.to(wide.device), self.token.to(wide.device)]
        return -(self.share.to(wide) @ asked)
