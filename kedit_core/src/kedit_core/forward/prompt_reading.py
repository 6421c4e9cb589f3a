"""Reading a prompt once for all that is asked of it: scores of targets, and what the model writes.

One pass over each prompt fills its KV cache; what else is fed follows from there. The first target is fed with the
prompt, and is a draft of the answer besides: where the model's own choice is the target's next token, that token has
been fed already, and the first one where it is not is where decoding goes on. So the answer is the greedy one, token by
token (as in speculative decoding with a draft that is given; Leviathan et al. 2023, arXiv 2211.17192, greedy case), and
takes a step only for what the target did not foretell. Results are those of :func:`score_pairs` and
:func:`generate_ids`: the same ids (up to exact ties of logits), log-probabilities within rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import torch

from kedit_core.forward.batch import Side, buckets
from kedit_core.forward.generation import generate_ids
from kedit_core.forward.prompt_passes import Asked, Found, Passes
from kedit_core.forward.scoring import score_pairs
from kedit_core.forward.state import evaluating
from kedit_core.forward.tokens import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from kedit_core.forward.scope import PromptScope
    from kedit_core.forward.tokens import TokenBoundary
    from kedit_core.models import ModelView


def read_prompts(
    model: PreTrainedModel,
    view: ModelView,
    boundary: TokenBoundary,
    asked: Sequence[Asked],
    max_new_tokens: int,
    *,
    stop: Callable[[str], bool] | None = None,
    scope: PromptScope | None = None,
    batch_tokens: int = 8192,
    padding_side: Side = "left",
    members: Sequence[int] | None = None,
) -> list[Found]:
    """Answer all that is asked of each prompt, in the order given; each prompt is read once.

    Arguments are those of :func:`generate_ids`. Prompts are read apart, by :func:`score_pairs` and
    :func:`generate_ids`, while operations on the model follow the phases of a prompt (``scope.watching``), and where
    positions are scarce.

    Memory: the KV cache of ``batch_tokens`` tokens, new ones and those of all targets' rows included, and logits
    ``target tokens x vocabulary`` of one batch.

    Raises:
        InputError: an empty prompt or target, or a row longer than the model's positions.
    """
    texts = range(len(asked)) if members is None else members
    passes = Passes(model, view, boundary, max_new_tokens, stop, scope, batch_tokens, padding_side)
    longest = max((len(target) for one in asked for target in one.targets), default=0)
    apart = [i for i, one in enumerate(asked) if not _can_share(passes, one, max(max_new_tokens, longest))]
    found = dict(zip(apart, _apart(passes, [asked[i] for i in apart], [texts[i] for i in apart]), strict=True))
    shared = [i for i in range(len(asked)) if i not in found]
    lengths = [passes.length(asked[i]) for i in shared]
    shares = [max(1, len(asked[i].targets)) for i in shared]
    with torch.no_grad(), evaluating(model):
        for group in buckets(lengths, batch_tokens, shares):
            chosen = [shared[k] for k in group]
            found.update(zip(chosen, passes.read([asked[i] for i in chosen], [texts[i] for i in chosen]), strict=True))
    return [found[i] for i in range(len(asked))]


def _can_share(passes: Passes, one: Asked, most: int) -> bool:
    if passes.scope is not None and passes.scope.watching:
        return False
    if not one.prompt or not all(one.targets) or not (one.writes or one.targets):
        return False  # which is for others to refuse, or takes no pass
    if one.writes and passes.max_new_tokens < 1:
        return False
    # some models count columns: a batch is as wide as its longest prompt, what was drafted and what other rows write
    limit = passes.view.row_limit
    return limit is None or len(one.prompt) + 2 * most <= limit


def _apart(passes: Passes, asked: Sequence[Asked], members: Sequence[int]) -> list[Found]:
    """Each thing that is asked in a pass of its own."""
    pairs = [(k, Pair(one.prompt, target)) for k, one in enumerate(asked) for target in one.targets]
    writing = [k for k, one in enumerate(asked) if one.writes]
    scores = score_pairs(
        passes.model, passes.view, passes.boundary, [pair for _, pair in pairs], scope=passes.scope,
        batch_tokens=passes.batch_tokens, padding_side=passes.side, members=[members[k] for k, _ in pairs],
    )  # fmt: skip
    written = generate_ids(
        passes.model, passes.view, passes.boundary, [asked[k].prompt for k in writing], passes.max_new_tokens,
        stop=passes.stop, scope=passes.scope, batch_tokens=passes.batch_tokens, padding_side=passes.side,
        members=[members[k] for k in writing],
    )  # fmt: skip
    new = dict(zip(writing, written, strict=True))
    left = iter(scores)
    return [Found(tuple(islice(left, len(one.targets))), new.get(k, [])) for k, one in enumerate(asked)]
