"""Parts of a dataset: prefixes and samples of whole cases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest
from kedit_datasets.subset import subset


def cases(*ids: str | None) -> list[EditRequest]:
    return [EditRequest(prompt=f"prompt {i}", target_new="x", case_id=case) for i, case in enumerate(ids)]


def test_a_size_is_the_first_cases_whole() -> None:
    requests = cases("a", "a", None, "b", "a", None)
    assert subset(requests) == requests
    # the later request of case a belongs to it
    assert subset(requests, size=1) == [requests[i] for i in (0, 1, 4)]
    assert subset(requests, size=3) == [requests[i] for i in (0, 1, 2, 3, 4)]
    assert subset(requests, size=99) == requests


@given(st.integers(1, 30), st.integers(), st.integers(0, 40))
def test_a_seed_draws_cases_in_the_datasets_order(size: int, seed: int, number: int) -> None:
    requests = cases(*(str(i // 2) for i in range(number)))
    drawn = subset(requests, size=size, seed=seed)
    assert drawn == subset(requests, size=size, seed=seed)
    assert [request for request in requests if request in drawn] == drawn
    chosen = {request.case_id for request in drawn}
    assert len(chosen) == min(size, (number + 1) // 2)
    assert drawn == [request for request in requests if request.case_id in chosen]


def test_seeds_differ_and_are_no_prefix() -> None:
    requests = cases(*map(str, range(200)))
    one, other = (subset(requests, size=20, seed=seed) for seed in (0, 1))
    assert one != other and one != requests[:20] and other != requests[:20]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": True}, "size is True"),
        ({"size": 2.0}, "size is 2.0"),
        ({"size": 2, "seed": "one"}, "seed is 'one'"),
    ],
)
def test_what_is_no_size_or_seed_is_refused(options: dict[str, int], told: str) -> None:
    with pytest.raises(InputError, match=told):
        subset(cases("a", "b"), **options)
