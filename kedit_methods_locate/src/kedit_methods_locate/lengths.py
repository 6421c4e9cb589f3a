"""Requests that are too long for the model's positions: refused before any work, all of them at once.

Rotary models run on beyond the positions that they were made for, and answer badly there, so they are refused too.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from kedit_core.editing import EditContext
from kedit_core.errors import RequestError
from kedit_core.forward import fill
from kedit_core.requests import EditRequest, shortened
from kedit_methods_locate.templates import BARE

_MARGIN = 16  # tokens by which a prompt may grow when it no longer stands first


def check_prompts(context: EditContext, requests: Sequence[EditRequest]) -> None:
    """Refuse requests whose prompt with its target, or whose essence row, has more tokens than the model positions.

    Raises RequestError naming each of them with its length.
    """
    limit = context.adapter.row_limit
    if limit is None:
        return
    faults = []
    for request in requests:
        name = shortened(request.prompt)
        if (length := _read(context, request)) > limit:
            faults.append(
                f"{name}: the prompt with its target is {length} tokens long, and the model has {limit} positions; "
                "shorten it"
            )
        elif request.subject_span is not None:
            essence = f"{request.prompt[slice(*request.subject_span)]} is a"
            if (length := len(context.tokens.prompt(essence).ids)) > limit:
                faults.append(
                    f"{name}: its subject followed by 'is a' is {length} tokens long, and the model has {limit} "
                    "positions; shorten the subject"
                )
    _refuse(context, faults)


def check_contexts(context: EditContext, requests: Sequence[EditRequest], templates: Sequence[str]) -> None:
    """Refuse requests that fit the model alone, but not behind all of these contexts.

    The first round of an edit looks at the requests of all rounds, so none is refused after others were edited.

    Raises RequestError naming each of them with its length there.
    """
    limit = context.adapter.row_limit
    contexts = [each for each in templates if each != BARE]
    if limit is None or not contexts:
        return
    # no token is shorter than a byte, so most requests need not be tokenised in every context
    longest = max(len(unicodedata.normalize("NFKC", each).encode()) for each in contexts) + _MARGIN
    faults = []
    for request in _of_the_edit(context, requests):
        alone = _read(context, request)
        if alone + longest <= limit:
            continue
        more = len(context.tokens.pair(request.prompt, request.target_new).target_ids) - 1
        length = max(len(context.tokens.prompt(fill(each, request.prompt)).ids) + more for each in contexts)
        if length > limit:
            faults.append(
                f"{shortened(request.prompt)}: the prompt with its target is {alone} tokens long, {length} behind the "
                f"longest of its contexts, and the model has {limit} positions; shorten it, or the contexts "
                "(context_lengths, context_templates)"
            )
    _refuse(context, faults)


def _read(context: EditContext, request: EditRequest) -> int:
    """Tokens that a decoder reads: the prompt, and the target but its last token."""
    pair = context.tokens.pair(request.prompt, request.target_new)
    return len(pair.prompt_ids) + len(pair.target_ids) - 1


def _of_the_edit(context: EditContext, requests: Sequence[EditRequest]) -> Sequence[EditRequest]:
    """These requests, or those of all rounds in the first."""
    whole = context.requests
    return whole if requests and whole and requests[0].id == whole[0].id else requests


def _refuse(context: EditContext, faults: Sequence[str]) -> None:
    if faults:
        name = context.method.name if context.method else "unknown"
        raise RequestError(f"the requests for method {name!r}", faults)
