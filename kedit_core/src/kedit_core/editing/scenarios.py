"""The three scenarios, as rounds of requests.

``single``: each case alone, restored after. ``batch``: all together. ``sequential``: ``batch_size`` at a time, each
round on the model that the rounds before left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from kedit_core.contract import SCENARIOS, MethodInfo, Scenario
from kedit_core.errors import InputError
from kedit_core.requests import EditRequest

Round: TypeAlias = tuple[EditRequest, ...]


def choose_scenario(wanted: str | None, method: MethodInfo) -> Scenario:
    """``wanted``, or batch if the method can, else sequential.

    Raises InputError for a scenario that does not exist or that the method cannot do.
    """
    if wanted is None:
        return "batch" if "batch" in method.scenarios else "sequential"
    for scenario in SCENARIOS:
        if scenario == wanted:
            if scenario not in method.scenarios:
                raise InputError(
                    f"method {method.name!r} cannot edit in scenario {wanted!r}; it can in "
                    f"{', '.join(sorted(method.scenarios))}"
                )
            return scenario
    raise InputError(f"there is no scenario {wanted!r}; choose one of {', '.join(SCENARIOS)}")


def cases(requests: Sequence[EditRequest]) -> list[Round]:
    """Requests grouped by ``case_id``, in order of first appearance; a request without one is a case of its own."""
    groups: dict[object, list[EditRequest]] = {}
    for index, request in enumerate(requests):
        groups.setdefault(request.case_id if request.case_id is not None else index, []).append(request)
    return [tuple(group) for group in groups.values()]


def rounds(requests: Sequence[EditRequest], scenario: Scenario, batch_size: int, method: MethodInfo) -> list[Round]:
    """What compute_patch is called with, call after call, to edit ``requests`` together or one after another.

    Raises InputError for a batch size below one, or above one for a method that edits one request at a time.
    """
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}; it must be at least 1")
    if batch_size > 1 and "batch" not in method.scenarios:
        raise InputError(f"method {method.name!r} edits one request at a time; leave batch_size at 1")
    if scenario == "batch" or (scenario == "single" and "batch" in method.scenarios):
        return [tuple(requests)]
    return [tuple(requests[i : i + batch_size]) for i in range(0, len(requests), batch_size)]


def as_requests(requests: EditRequest | Sequence[EditRequest], verb: str) -> tuple[EditRequest, ...]:
    """One request or many, as many; InputError for none."""
    # a mapping or a text is told to be no request, not walked through
    given = (requests,) if isinstance(requests, EditRequest | Mapping | str) else tuple(requests)
    if not given:
        raise InputError(f"there is nothing to {verb}: the list of requests is empty")
    return given
