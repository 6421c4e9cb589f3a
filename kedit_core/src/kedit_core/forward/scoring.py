"""Log-probabilities of targets given their prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.errors import InputError
from kedit_core.forward.batch import Side, buckets
from kedit_core.forward.run import ForwardTools
from kedit_core.forward.tokens import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.forward.scope import PromptScope
    from kedit_core.forward.tokens import TokenBoundary
    from kedit_core.models import ModelView


@frozen(eq=False)
class PairScore:
    """How a model reads one target after its prompt, each target token after the true ones before it.

    Attributes:
        logprobs: ``[T]`` float32 on the CPU, log-probability of each target token.
        predicted: ``[T]`` the likeliest id at each target position.
        target_ids: the target's T ids.
    """

    logprobs: Tensor
    predicted: Tensor
    target_ids: tuple[int, ...]


def score_pairs(
    model: PreTrainedModel,
    view: ModelView,
    boundary: TokenBoundary,
    pairs: Sequence[Pair | tuple[str, str]],
    *,
    batch_tokens: int = 8192,
    padding_side: Side = "right",
    scope: PromptScope | None = None,
) -> list[PairScore]:
    """Score every (prompt, target), in the order given.

    Rows of similar length run together up to ``batch_tokens`` tokens; the head is run at target positions only, and
    log-probabilities are taken in float32. Scores do not depend on batches beyond rounding.

    Memory: one block's activations for ``batch_tokens`` tokens, and ``target tokens x vocabulary`` float32 logits.

    Raises:
        InputError: an empty prompt or target, or a row longer than the model's positions.
    """
    ready = [pair if isinstance(pair, Pair) else boundary.pair(*pair) for pair in pairs]
    rows = [pair.prompt_ids if view.is_encoder_decoder else pair.prompt_ids + pair.target_ids[:-1] for pair in ready]
    limit = view.row_limit
    if limit is not None and (longest := max((len(row) for row in rows), default=0)) > limit:
        raise InputError(f"a prompt with its target is {longest} tokens long, and the model has {limit} positions")
    tools = ForwardTools(model, view, boundary, scope=scope)
    scores: dict[int, PairScore] = {}
    for group in buckets([len(row) + len(p.target_ids) for row, p in zip(rows, ready, strict=True)], batch_tokens):
        chosen = [ready[i] for i in group]
        batch = tools.batch(
            [rows[i] for i in group],
            side=padding_side,
            targets=[pair.target_ids for pair in chosen],
            prompt_lengths=[len(pair.prompt_ids) for pair in chosen],
        )
        batch = evolve(batch, members=torch.tensor(group))
        ends = None if view.is_encoder_decoder else batch.prompt_ends
        starts = [0] * len(group) if ends is None else ends.tolist()
        cells = [
            (r, start + t)
            for r, (pair, start) in enumerate(zip(chosen, starts, strict=True))
            for t in range(len(pair.target_ids))
        ]
        logits = tools.run(batch, logits_at=torch.tensor(cells)).logits
        if logits is None:
            raise InputError("the model gave no logits")
        logprobs = torch.log_softmax(logits.float(), dim=-1).cpu()
        at = 0
        for i, pair in zip(group, chosen, strict=True):
            here = logprobs[at : at + len(pair.target_ids)]
            at += len(pair.target_ids)
            targets = torch.tensor(pair.target_ids).unsqueeze(1)
            scores[i] = PairScore(here.gather(1, targets).squeeze(1), here.argmax(dim=-1), pair.target_ids)
    return [scores[i] for i in range(len(ready))]
