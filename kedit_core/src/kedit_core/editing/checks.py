"""What methods that learn a request's target check before and say afterwards, alike in all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from kedit_core.editing.context import EditContext
from kedit_core.errors import RequestError
from kedit_core.models import ModelView
from kedit_core.requests import EditRequest, shortened

_REACHED = 0.5  # probability of a target's token, geometric mean


def row_length(view: ModelView, prompt: Sequence[int], target: Sequence[int]) -> int:
    """Tokens that the edited stack reads: an encoder the prompt, a decoder all but the last target token too."""
    return len(prompt) + (0 if view.is_encoder_decoder else len(target) - 1)


def refuse_long(context: EditContext, requests: Sequence[EditRequest], lengths: Sequence[int]) -> None:
    """RequestError naming each request whose row has more tokens than the model has positions (also of rotary models).

    lengths: :func:`row_length` of each request.
    """
    limit = context.adapter.row_limit
    faults = [
        f"{shortened(request.prompt)}: the prompt with its target is {length} tokens long, and the model has {limit} "
        "positions; shorten it"
        for request, length in zip(requests, lengths, strict=True)
        if limit is not None and length > limit
    ]
    if faults:
        name = context.method.name if context.method else "unknown"
        raise RequestError(f"the requests for method {name!r}", faults)


def warn_missed(context: EditContext, losses: Sequence[float], remedy: str) -> None:
    """Warn ``target_not_reached`` with the share of facts whose target is below a probability of 0.5 a token.

    losses: of each fact, mean over its target's tokens.
    """
    missed = sum(math.exp(-loss) < _REACHED for loss in losses)
    if missed:
        context.warn(
            "target_not_reached",
            missed / len(losses),
            remedy,
            f"training left {missed} of {len(losses)} targets below a probability of {_REACHED} a token",
        )
