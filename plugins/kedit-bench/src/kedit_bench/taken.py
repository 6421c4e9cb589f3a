"""What a scenario takes of a dataset, how it comes to be run, and sentences for what that changes of what was asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from attrs import evolve

from kedit_bench.mixing import Case, Opened
from kedit_bench.spec import ALL, MethodSpec, ScenarioSpec
from kedit_core.contract import MethodInfo
from kedit_core.requests import EditRequest

_CURVE = (1, 10, 100, 500)  # then every thousand


def requests_of(dataset: Opened, scenario: ScenarioSpec) -> tuple[EditRequest, ...]:
    """The requests that a scenario is given: of a sequence the first ``size``, no case cut in two."""
    if scenario.kind != "sequential" or scenario.size is None:
        return dataset.requests
    taken: list[EditRequest] = []
    for case in dataset.cases:
        if taken and len(taken) + len(case) > scenario.size:
            break
        taken += case
    return tuple(taken)


def batches_of(cases: Sequence[Case], size: int) -> tuple[list[Case], Case]:
    """Full batches of ``size`` requests, and the requests of the cases behind the last full one.

    Where there is no full batch, all cases are one. A case is never cut in two, so a batch may lack what the next case
    would have had too much.
    """
    batches: list[list[EditRequest]] = [[]]
    for case in cases:
        if batches[-1] and len(batches[-1]) + len(case) > size:
            batches.append([])
        batches[-1] += case
    rest = batches.pop() if len(batches) > 1 and len(batches[-1]) < size else []
    return [tuple(batch) for batch in batches], tuple(rest)


def left_over(rest: int, size: int) -> str:
    """A sentence for ``rest`` requests that fill no batch."""
    return f"{counted(rest, 'request')} left over by batches of {size}"


def settled(asked: ScenarioSpec, method: MethodSpec, info: MethodInfo, requests: Sequence[EditRequest]) -> ScenarioSpec:
    """A scenario with all that is open in it decided for a method and its requests."""
    total = len(requests)
    if asked.kind == "single":
        return evolve(asked, size=1)
    size = min(asked.size or total, total)
    if asked.kind == "batch":
        return evolve(asked, size=size)
    wanted = method.batch_size or asked.batch_size
    together = size if wanted == ALL else min(int(wanted), size)
    if "batch" not in info.scenarios:
        together = 1
    marks = asked.checkpoints or tuple(_curve(size))
    ends = {_end(mark, together, size) for mark in marks if mark <= size}
    return evolve(asked, size=size, batch_size=together, checkpoints=tuple(sorted(ends | {size})))


def changes(
    asked: ScenarioSpec, found: ScenarioSpec, method: MethodSpec, info: MethodInfo, dataset: Opened
) -> Iterator[str]:
    """A sentence for each way in which what is run differs from what was asked.

    Args:
        found: ``asked`` as :func:`settled` decided it for the method and the dataset.
    """
    if asked.kind == "single":
        return
    there, size = len(dataset.requests), found.size or len(dataset.requests)
    if asked.size is not None and there < asked.size:
        yield f"{asked}: only {_facts(there)} in {dataset.label}"
    elif asked.kind == "sequential" and asked.size is not None and size < asked.size:
        yield f"{asked}: {_facts(size)} of {dataset.label}, since no case is cut in two"
    if asked.kind == "batch":
        _, rest = batches_of(dataset.cases, size)
        if rest:
            yield f"{asked} on {dataset.label}: {left_over(len(rest), size)}"
        return
    yield from _of_rounds(asked, found, size, method, info)


def counted(number: int, what: str) -> str:
    """``1 request is``, ``2 requests are``."""
    return f"{number} {what} is" if number == 1 else f"{number} {what}s are"


def _of_rounds(
    asked: ScenarioSpec, found: ScenarioSpec, size: int, method: MethodSpec, info: MethodInfo
) -> Iterator[str]:
    together = found.batch_size
    wanted = method.batch_size or asked.batch_size
    if wanted != ALL and together < int(wanted):
        if "batch" in info.scenarios:
            yield f"{asked}: rounds of {together}, since there are no more facts"
        else:
            yield f"{asked}: {method.called} edits one fact at a time, so its rounds are of 1"
    head = str(asked) if together == asked.batch_size else f"{asked}, {method.called}"
    moved: dict[int, list[int]] = {}
    for mark in asked.checkpoints:
        if mark > size:
            yield f"{head}: checkpoint {mark} lies behind the last of {size} edits, and is left out"
        elif (end := _end(mark, together, size)) != mark:
            moved.setdefault(end, []).append(mark)
    for end, marks in moved.items():
        if len(marks) == 1:
            yield f"{head}: checkpoint {marks[0]} is no end of a round of {together}; measured after {end}"
        else:
            several = ", ".join(map(str, marks))
            yield f"{head}: checkpoints {several} are no ends of rounds of {together}; measured after {end}"


def _facts(number: int) -> str:
    return f"{number} fact" if number == 1 else f"{number} facts"


def _end(mark: int, together: int, size: int) -> int:
    """The end of the round in which a checkpoint lies."""
    return min(size, -(-mark // together) * together)


def _curve(size: int) -> Iterator[int]:
    yield from (mark for mark in _CURVE if mark <= size)
    yield from range(1000, size + 1, 1000)
