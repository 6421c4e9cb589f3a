"""Edits as token ids: prompt and new answer, with an instruction in front where the editor was trained with one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

from kedit_core.editing import EditContext
from kedit_core.editing.checks import refuse_long, row_length
from kedit_core.errors import InputError, RequestError
from kedit_core.forward import Pair, TokenBoundary
from kedit_core.requests import EditRequest, shortened
from kedit_methods_meta.hparams.mend import slots

_SPECIAL = 8  # special tokens of a row, at most


def pair_of(tokens: TokenBoundary, prompt: str, answer: str, append_eos: bool | None = None) -> Pair:
    """A prompt and an answer as ids, tokenised together where one model reads both.

    Args:
        answer: may be empty for a prompt of which only the model's reading is compared.
        append_eos: whether the answer ends with the end-of-sequence token; None: in encoder-decoder models only.

    Raises InputError when there is no such token, or no token at all.
    """
    pair = tokens.pair(prompt, answer) if answer.strip() else Pair(tokens.prompt(prompt).ids, ())
    if not (tokens.encoder_decoder if append_eos is None else append_eos):
        return pair
    if tokens.tokenizer.eos_token_id is None:
        raise InputError("the tokenizer has no end-of-sequence token to append; set append_eos to false")
    return Pair(pair.prompt_ids, (*pair.target_ids, int(tokens.tokenizer.eos_token_id)))


@frozen
class Relabelled(Pair):
    """A pair whose answer's tokens are asked for under other ids than those the model reads there.

    Attributes:
        labels: one for each of ``target_ids``.
    """

    labels: tuple[int, ...]


def right_aligned(tokens: TokenBoundary, prompt: str, answer: str) -> Pair:
    """A pair as EasyEdit's trainer labels it: the answer tokenised alone, laid against the row's last tokens.

    A tokenizer that puts a token before every text makes that token the first label. Encoder-decoders are labelled as
    by :func:`pair_of`. Raises InputError when the answer alone is as long as the row.
    """
    pair = tokens.pair(prompt, answer)
    if tokens.encoder_decoder:
        return pair_of(tokens, prompt, answer)
    row = (*pair.prompt_ids, *pair.target_ids)
    labels = tuple(tokens.tokenizer(answer if answer[:1].isspace() else f" {answer}")["input_ids"])
    if len(labels) >= len(row):
        raise InputError(f"the answer {answer!r} alone has {len(labels)} tokens, and its row {len(row)}")
    return Relabelled(row[: -len(labels)], row[-len(labels) :], labels)


def instructed(template: str | None, prompt: str, meta: Mapping[str, Any]) -> str:
    """A prompt behind its instruction.

    Raises KeyError for a slot that ``meta`` has nothing for.
    """
    if template is None:
        return prompt
    return template.format(**{name: str(meta[name]) for name in slots(template)}) + prompt


def edit_pairs(
    context: EditContext, requests: Sequence[EditRequest], template: str | None, append_eos: bool | None
) -> list[Pair]:
    """What an editor is shown of these requests.

    Raises:
        RequestError: every request that lacks a key of the instruction, or is longer than the model's positions.
    """
    faults, found = [], []
    for request in requests:
        try:
            prompt = instructed(template, request.prompt, request.meta)
        except KeyError as error:
            faults.append(
                f"{shortened(request.prompt)}: the editor was trained with the instruction {template!r}, and the "
                f"request's meta has no {error.args[0]!r}; add it"
            )
            continue
        found.append(pair_of(context.tokens, prompt, request.target_new, append_eos))
    if faults:
        name = context.method.name if context.method else "unknown"
        raise RequestError(f"the requests for method {name!r}", faults)
    refuse_long(context, requests, [row_length(context.adapter, each.prompt_ids, each.target_ids) for each in found])
    return found


def check_records(
    context: EditContext,
    requests: Sequence[EditRequest],
    pair: Callable[[str, str], Pair],
    template: str | None = None,
) -> None:
    """Refuse records to train on that lack a key of the instruction, or a text of which is longer than the model's
    positions: their prompts, rephrases and locality probes.

    Args:
        pair: makes a prompt and an answer ids.

    Raises RequestError naming every such record.
    """
    limit = context.adapter.row_limit
    # any record's answer may be asked for in any other's place (alternatives_from)
    answers = [each for request in requests for each in (request.target_new, request.ground_truth) if each]
    answer = max(answers, key=len, default="")
    faults = []
    for request in requests:
        try:
            asked = [(instructed(template, request.prompt, request.meta), answer)]
        except KeyError as error:
            faults.append(f"{shortened(request.prompt)}: its meta has no {error.args[0]!r} for the instruction")
            continue
        asked += [(text, answer) for text in request.rephrase_prompts]
        probes = [probe for some in request.locality.values() for probe in some]
        asked += [(probe.prompt, probe.answers[0]) for probe in probes if probe.answers]
        for text, said in asked:
            # a token stands for a byte at least, and few are added
            if limit is not None and len(text.encode()) + len(said.encode()) + _SPECIAL > limit:
                fault = too_long(context, pair(text, said))
                faults += [f"{shortened(text)}: {fault}"] if fault else []
    if faults:
        raise RequestError("the records to train on", faults)


def too_long(context: EditContext, pair: Pair) -> str | None:
    """Why a pair cannot be read by the model, or None."""
    limit, view = context.adapter.row_limit, context.adapter
    length = len(pair.prompt_ids) + (0 if view.is_encoder_decoder else len(pair.target_ids))
    if limit is None or length <= limit:
        return None
    return f"the prompt with its answer is {length} tokens long, and the model has {limit} positions; shorten it"
