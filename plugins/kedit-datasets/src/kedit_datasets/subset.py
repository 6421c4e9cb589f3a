"""Part of a dataset: a prefix, as published scripts take it, or a sample by a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest


def subset(requests: Sequence[EditRequest], size: int | None = None, seed: int | None = None) -> list[EditRequest]:
    """The first ``size`` cases, or as many drawn by ``seed`` (in the dataset's order); all without a size.

    Requests of one case stay together. Raises InputError for a size below one.
    """
    if size is None and seed is None:
        return list(requests)
    if size is not None and (type(size) is not int or size < 1):
        raise InputError(f"size is {size!r}; give a whole number of cases, from 1")
    if seed is not None and type(seed) is not int:
        raise InputError(f"seed is {seed!r}; give a whole number")
    cases = _cases(requests)
    count = len(cases) if size is None else min(size, len(cases))
    taken = cases[:count] if seed is None else random.Random(seed).sample(cases, count)
    chosen = set(taken)
    return [request for i, request in enumerate(requests) if _case(request, i) in chosen]


def told(
    part: Sequence[EditRequest], whole: Sequence[EditRequest], size: int | None = None, seed: int | None = None
) -> str:
    """What :func:`subset` took, in words."""
    taken = f"{len(_cases(part))} of {len(_cases(whole))} cases"
    return f"the first {taken}" if seed is None else f"{taken}, drawn by seed {seed}"


def _cases(requests: Sequence[EditRequest]) -> list[object]:
    return list(dict.fromkeys(_case(request, i) for i, request in enumerate(requests)))


def _case(request: EditRequest, index: int) -> object:
    return request.case_id if request.case_id is not None else index
