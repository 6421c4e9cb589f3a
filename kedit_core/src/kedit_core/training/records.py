"""What editors are trained on, drawn from edit requests: an edit, another wording of it, something unrelated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import TypeAlias

import torch
from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest
from kedit_core.training.settings import EditTrainingHyperParams, TrainingHyperParams

Asked: TypeAlias = tuple[str, str]
"""A prompt and its answer."""

_TRIES = 64  # redraws of an unrelated prompt that happens to be of the batch itself


@frozen(kw_only=True)
class EditExample:
    """One edit as drawn for a micro-batch; texts, for the method to tokenise as its model needs.

    Attributes:
        id: of the case. request: what it was drawn from.
        inner: (prompt, new answer) that the editor sees.
        outer: (prompt, new answer) that the edited model must give.
        locality: (prompt, answer) that must stay as the base has it; of none of the batch's cases, unless it is a
            locality probe of this very record.
    """

    id: str
    inner: Asked
    outer: Asked
    locality: Asked
    request: EditRequest


class Examples:
    """Draws examples from requests.

    Args:
        requests: what is edited. Those that lack a rephrase where ``outer`` needs one, or locality probes where
            ``locality`` needs them, are left out.
        unrelated: further requests that locality prompts are drawn from.

    Attributes:
        left_out: how many requests cannot be used.

    Raises InputError when no request can be used, or nothing is unrelated to some of them.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        hparams: EditTrainingHyperParams,
        unrelated: Sequence[EditRequest] = (),
    ) -> None:
        self.hparams = hparams
        answers = alternatives(requests, hparams.alternatives_from)
        wanted = usable(requests, hparams)
        self.left_out = len(requests) - sum(wanted)
        if not any(wanted):
            raise none_usable(len(requests), "can be trained on", hparams)
        self._records = [request for request, use in zip(requests, wanted, strict=True) if use]
        self._answers = [pool for pool, use in zip(answers, wanted, strict=True) if use]
        self._elsewhere = [each for each in _unrelated([*requests, *unrelated]) if each[1]]
        others = {case for case, _ in self._elsewhere}
        together = min(hparams.batch_size, len(self._records))
        # of cases that no batch has there is always one left
        if hparams.locality != "own" and not others - set(map(case_of, self._records)) and len(others) <= together:
            raise InputError(
                f"prompts that must not change come from other cases than a batch's {together}, so more than that must "
                f"have known answers, and {len(others)} have; give more requests with ground_truth or locality probes, "
                "or a smaller batch_size"
            )

    @property
    def count(self) -> int:
        """How many records can be drawn."""
        return len(self._records)

    def draw(self, indices: Sequence[int], generator: torch.Generator) -> tuple[EditExample, ...]:
        """The records of these indices as examples; all else is drawn with ``generator``."""
        drawn: list[tuple[EditRequest, Asked, Asked]] = []
        for index in indices:
            request, pool = self._records[index], self._answers[index]
            answer = pool[below(len(pool), generator)]
            drawn.append((request, (request.prompt, answer), (self._outer(request, generator), answer)))
        ids = {case_of(request) for request, _, _ in drawn}
        texts = {text for request, _, _ in drawn for text in (request.prompt, *request.rephrase_prompts)}
        return tuple(
            EditExample(
                id=case_of(request),
                inner=inner,
                outer=outer,
                locality=self._locality(request, ids, texts, generator),
                request=request,
            )
            for request, inner, outer in drawn
        )

    def unrelated(self, examples: Sequence[EditExample], count: int, generator: torch.Generator) -> tuple[Asked, ...]:
        """So many further prompts of other cases than the examples', with their answers; drawn with replacement."""
        ids = {each.id for each in examples}
        texts = {text for each in examples for text in (each.request.prompt, *each.request.rephrase_prompts)}
        return tuple(self._other(ids, texts, generator) for _ in range(count))

    def batches(self, size: int, items: int, seed: int) -> list[tuple[EditExample, ...]]:
        """Micro-batches of at most ``items`` records, always the same for a seed: what a trainer validates on."""
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(self.count, generator=generator).tolist()[:items]
        return [self.draw(order[start : start + size], generator) for start in range(0, len(order), size)]

    def _outer(self, request: EditRequest, generator: torch.Generator) -> str:
        found = _rephrases(request)
        kind = self.hparams.outer
        if not found or kind == "original" or (kind == "either" and below(2, generator)):
            return request.prompt
        return found[below(len(found), generator)]

    def _locality(self, request: EditRequest, ids: set[str], texts: set[str], generator: torch.Generator) -> Asked:
        kind = self.hparams.locality
        own = [each for each in _probes(request) if each[0] not in texts] if kind != "others" else []
        if own and (kind == "own" or below(2, generator)):
            return own[below(len(own), generator)]
        return self._other(ids, texts, generator)

    def _other(self, ids: set[str], texts: set[str], generator: torch.Generator) -> Asked:
        for _ in range(_TRIES if self._elsewhere else 0):
            case, found = self._elsewhere[below(len(self._elsewhere), generator)]
            asked = found[below(len(found), generator)]
            if case not in ids and asked[0] not in texts:
                return asked
        # nearly everything is of the batch itself: the same odds over what is not
        left = [
            (asked, 1 / len(found))
            for case, found in self._elsewhere
            for asked in found
            if case not in ids and asked[0] not in texts
        ]
        if not left:
            raise InputError(
                f"nothing is unrelated to the cases {', '.join(sorted(ids)[:3])}; give requests of more cases, or a "
                "smaller batch_size"
            )
        odds = torch.tensor([share for _, share in left], dtype=torch.float64)
        return left[int(torch.multinomial(odds, 1, generator=generator))][0]


def usable(requests: Sequence[EditRequest], hparams: TrainingHyperParams) -> list[bool]:
    """Which requests can be edited in a training: all, where the method draws in a way of its own."""
    if not isinstance(hparams, EditTrainingHyperParams):
        return [True] * len(requests)
    return [
        bool(pool)
        and (hparams.outer != "rephrase" or bool(_rephrases(request)))
        and (hparams.locality != "own" or bool(_probes(request)))
        for request, pool in zip(requests, alternatives(requests, hparams.alternatives_from), strict=True)
    ]


def none_usable(count: int, use: str, hparams: EditTrainingHyperParams) -> InputError:
    """What to say when no request is of use."""
    return InputError(
        f"none of {count} requests {use} with outer={hparams.outer} and locality={hparams.locality}; give requests "
        "with rephrase_prompts (and locality probes with answers), or change these settings"
    )


def split(
    requests: Sequence[EditRequest], share: float, seed: int, wanted: Sequence[bool] | None = None
) -> tuple[list[EditRequest], list[EditRequest]]:
    """Requests to train on and to hold out, told apart by case; the same cases whatever their order.

    Args:
        wanted: which requests are of use, if any; cases without one are not held out.

    Raises InputError when one of the two would be empty.
    """
    use = wanted if wanted is not None and any(wanted) else [True] * len(requests)
    names = sorted({case_of(request) for request, good in zip(requests, use, strict=True) if good})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    held = {names[i] for i in order[: max(1, round(share * len(names)))]}
    kept = [request for request in requests if case_of(request) not in held]
    out = [request for request in requests if case_of(request) in held]
    if not kept or not out:
        raise InputError(
            f"{len(names)} case{'s' * (len(names) != 1)} cannot be split into some to train on and a share of {share} "
            "to validate on; give more cases, or a file to validate on"
        )
    return kept, out


def case_of(request: EditRequest) -> str:
    """What tells records apart: requests of one case say the same fact, or depend on it."""
    return request.case_id or request.id


def alternatives(
    requests: Sequence[EditRequest], name: str | None, *, own_truth: bool = False
) -> list[tuple[str, ...]]:
    """The new answers that each request may be given: ``target_new``, or those of all with its value of ``meta[name]``.

    A request's own true answer is one of the latter only with ``own_truth``. Raises InputError for a request without
    that field.
    """
    if name is None:
        return [(request.target_new,) for request in requests]
    pools: dict[str, dict[str, None]] = defaultdict(dict)
    for request in requests:
        if name not in request.meta:
            raise InputError(
                f"the request of {request.prompt[:60]!r} has no {name!r} in its meta; leave alternatives_from out"
            )
        known = {text: None for text in (request.target_new, request.ground_truth) if text}
        pools[str(request.meta[name])].update(known)
    return [
        tuple(sorted(text for text in pools[str(request.meta[name])] if own_truth or text != request.ground_truth))
        for request in requests
    ]


def below(count: int, generator: torch.Generator) -> int:
    """A whole number from 0 to ``count - 1``, all equally likely."""
    return int(torch.randint(count, (), generator=generator))


def _rephrases(request: EditRequest) -> list[str]:
    return [text for text in dict.fromkeys(request.rephrase_prompts) if text != request.prompt]


def _probes(request: EditRequest) -> list[Asked]:
    """Locality probes whose answer is known."""
    return [
        (probe.prompt, probe.answers[0]) for probes in request.locality.values() for probe in probes if probe.answers
    ]


def _unrelated(requests: Sequence[EditRequest]) -> list[tuple[str, list[Asked]]]:
    """(case, what can be asked there without touching any edit's new answer) of each request."""
    found = []
    for request in requests:
        own = [(request.prompt, request.ground_truth)] if request.ground_truth else []
        found.append((case_of(request), [*own, *_probes(request)]))
    return found
