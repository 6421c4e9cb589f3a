"""Acceptance check 7: when training ends."""

from __future__ import annotations

import pytest

from kedit_methods_memory.t_patcher.stopping import StopRule


@pytest.mark.parametrize(
    ("losses", "end"),
    [
        ([5.0, 4.0, 3.9995], 2),
        ([5.0, 4.0, 3.0], None),
        ([5.0, 5.0], 1),
        ([5.0], None),
        ([5.0, 6.0, 1.0], 1),
        ([0.01, 0.0095], 1),
        ([3.0, 2.9, 2.8, 2.7995], 3),
    ],
)
def test_check_7_it_ends_when_the_last_loss_brought_nothing(losses: list[float], end: int | None) -> None:
    rule = StopRule()
    ended = [rule.ends_with(loss) for loss in losses[: len(losses) if end is None else end + 1]]
    assert ended == [False] * (len(ended) - 1) + [end is not None]


def test_with_patience_one_more_loss_is_waited_for() -> None:
    rule = StopRule(patience=2)
    assert [rule.ends_with(loss) for loss in (5.0, 5.0, 4.0, 4.5, 4.5)] == [False, False, False, False, True]
