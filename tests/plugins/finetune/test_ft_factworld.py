"""On models that know facts: what is taught is said, and what each method is for.

The sheet's check 10 asks for 50 requests of CounterFact. They are FactWorld's here: CounterFact is a download, and only
a model of some size knows its facts, while these tests run anywhere, on models that are known to know every fact they
are asked to change.
"""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from kedit_core import Editor, EditRequest

pytestmark = pytest.mark.slow


def sample(editor: Editor, count: int) -> list[EditRequest]:
    """Cases evenly spread over FactWorld, without portability."""
    dataset = editor.host.dataset("factworld")
    assert dataset.requests is not None
    requests = list(dataset.requests())
    chosen = [requests[i * len(requests) // count] for i in range(count)]
    return [evolve(each, portability={}) for each in chosen]


def score(result: Any, metric: str) -> float:
    return float(result.evaluation.metrics[f"gen_free.{metric}"].value)


# ------------------------------------------------------------------ acceptance check 10
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_ft_m_makes_the_model_say_the_target(model: str) -> None:
    """At least 95 % of 50 facts, each alone, greedy decoding, no bound."""
    editor = Editor.from_pretrained(f"factworld:{model}", method="ft_m")
    assert editor.settings is not None and editor.settings.hparams.norm_constraint is None
    said = 0
    for request in sample(editor, 50):
        with editor.applied(editor.compute(request)):
            answer = editor.generate(request.prompt, max_new_tokens=8).strip()
        said += answer.startswith(request.target_new)
    assert said >= 48


def test_breadth_first_holds_what_depth_first_forgets() -> None:
    """The same loss, layer and facts: all in one call, one after another, and one after another with replay."""
    reliability: dict[str, float] = {}
    for name, scenario, replay in (
        ("breadth", "batch", False),
        ("depth", "sequential", False),
        ("replayed", "sequential", True),
    ):
        editor = Editor.from_pretrained("factworld:gpt2", method="ft_bf", overrides={"replay": replay})
        cases = [evolve(each, locality={}, rephrase_prompts=()) for each in sample(editor, 30)]
        reliability[name] = score(editor.edit(cases, scenario=scenario), "reliability")
    assert reliability["breadth"] >= 0.9
    assert reliability["replayed"] >= 0.9
    assert reliability["depth"] < 0.75
