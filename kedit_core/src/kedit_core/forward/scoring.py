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
    members: Sequence[int] | None = None,
) -> list[PairScore]:
    """Score every (prompt, target), in the order given.

    Rows of similar length run together up to ``batch_tokens`` tokens; the head is run at target positions only, and
    log-probabilities are taken in float32. Scores do not depend on batches beyond rounding.

    ``members``: which of the caller's texts each pair is, as the scope is told; its place in ``pairs`` when None.

    Memory: one block's activations for ``batch_tokens`` tokens, and ``target tokens x vocabulary`` float32 logits.

    Raises:
        InputError: an empty prompt or target, or a row longer than the model's positions.
    """
    ready = [pair if isinstance(pair, Pair) else boundary.pair(*pair) for pair in pairs]
    tools = ForwardTools(model, view, boundary, scope=scope)
    rows = [len(pair.prompt_ids) + 2 * len(pair.target_ids) - 1 for pair in ready]
    scores: dict[int, PairScore] = {}
    for group in buckets(rows, batch_tokens):
        chosen = [ready[i] for i in group]
        texts = group if members is None else [members[i] for i in group]
        logprobs = target_distributions(tools, chosen, texts, padding_side)
        scores.update(zip(group, scores_in(logprobs, [pair.target_ids for pair in chosen]), strict=True))
    return [scores[i] for i in range(len(ready))]


def scores_in(logprobs: Tensor, targets: Sequence[Sequence[int]]) -> list[PairScore]:
    """The scores of targets, given log-probabilities ``[all their tokens, vocabulary]`` float32 before each token."""
    ids = torch.tensor([token for target in targets for token in target], device=logprobs.device)
    of_target = logprobs.gather(1, ids.unsqueeze(1)).squeeze(1).cpu()
    likeliest = logprobs.argmax(dim=-1).cpu()
    counts = [len(target) for target in targets]
    each = zip(torch.split(of_target, counts), torch.split(likeliest, counts), targets, strict=True)
    return [PairScore(one.clone(), best, tuple(target)) for one, best, target in each]


def target_distributions(tools: ForwardTools, pairs: Sequence[Pair], members: Sequence[int], side: Side) -> Tensor:
    """Log-probabilities ``[target tokens of all pairs, vocabulary]`` float32, the pairs one batch.

    Args:
        members: which of the caller's texts each pair is, for operations that act on some of them only.

    Raises InputError for a row longer than the model's positions.
    """
    seq2seq = tools.view.is_encoder_decoder
    rows = [pair.prompt_ids if seq2seq else pair.prompt_ids + pair.target_ids[:-1] for pair in pairs]
    limit = tools.view.row_limit
    if limit is not None and (longest := max(map(len, rows))) > limit:
        raise InputError(f"a prompt with its target is {longest} tokens long, and the model has {limit} positions")
    batch = tools.batch(
        rows,
        side=side,
        targets=[pair.target_ids for pair in pairs],
        prompt_lengths=[len(pair.prompt_ids) for pair in pairs],
    )
    batch = evolve(batch, members=torch.tensor(list(members)))
    starts = [0] * len(pairs) if seq2seq or batch.prompt_ends is None else batch.prompt_ends.tolist()
    cells = [(row, starts[row] + t) for row, pair in enumerate(pairs) for t in range(len(pair.target_ids))]
    logits = tools.run(batch, logits_at=torch.tensor(cells)).logits
    if logits is None:
        raise InputError("the model gave no logits")
    return torch.log_softmax(logits.float(), dim=-1)
