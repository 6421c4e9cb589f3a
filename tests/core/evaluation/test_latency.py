"""The time of a token that is written, edited and unedited."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import toy_methods
from metric_tools import ALONE

from kedit_core import Editor, EditRequest
from kedit_core.evaluation import LatencyMetrics
from kedit_core.testing.tiny import tiny


class Slow:
    """Answers that take their time, and note what was asked."""

    def __init__(self, first: float, token: float) -> None:
        self.first, self.token, self.asked = first, token, []

    def raw_generate(self, prompts, tokens, *, stop, ignore_eos):
        assert ignore_eos and not stop("anything")
        self.asked.append((*prompts, tokens))
        time.sleep(self.first + self.token * (tokens - 1))


@pytest.fixture
def context(make_context):
    return make_context(
        scenario="single",
        wants=lambda group: group == "latency",
        model=None,
        adapter=SimpleNamespace(row_limit=40),
        tokens=SimpleNamespace(prompt=lambda text: SimpleNamespace(ids=text.split())),
    )


def test_times_are_told_apart(context, make_request, monkeypatch) -> None:
    monkeypatch.setattr("kedit_core.evaluation.latency.devices_of", lambda model: [])
    requests = [make_request(number) for number in range(5)]
    base, edited = Slow(0.004, 0.0005), Slow(0.02, 0.002)
    found = LatencyMetrics(prompts=2, tokens=8).evaluate(context, requests, base, edited)
    first, token = found["latency.first_token"], found["latency.per_token"]
    assert set(first.cases) == set(token.cases) == {"case-0", "case-3"}  # at equal distances
    assert first.value >= 0.02 and first.parts["base"] >= 0.004 and first.unit == "seconds"
    assert 0.0015 < token.value < 0.1 and token.value > token.parts["base"]
    for result in (first, token):
        assert result.parts["added"] == pytest.approx(result.value - result.parts["base"])
        assert result.tag == "latency.8-tokens.wall-clock.single.5+merged"
    assert {tokens for _, tokens in base.asked} == {1, 2, 9} and len(base.asked) == 2 * (1 + 2 * 3)
    assert set(found) == {info.name for info in LatencyMetrics().register_metrics()}


def test_prompts_without_room_are_left_out(context, make_request, monkeypatch) -> None:
    monkeypatch.setattr("kedit_core.evaluation.latency.devices_of", lambda model: [])
    reader = Slow(0.0, 0.0)
    found = LatencyMetrics(tokens=39).evaluate(context, [make_request()], reader, reader)
    assert found["latency.per_token"].value is None and found["latency.per_token"].left_out == 1
    assert reader.asked == []


def test_on_request_with_a_real_model() -> None:
    editor = Editor(*tiny("gpt2"), "nudge", catalogue=ALONE.including(*toy_methods.ALL))
    request = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome")
    assert "latency.per_token" not in editor.edit(request).evaluation
    editor.restore()
    found = editor.edit(request, metrics=["latency"]).evaluation["latency.per_token"]
    assert found.value > 0 and found.parts["base"] > 0
