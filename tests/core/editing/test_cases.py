"""Single edits that are evaluated together get the results that they get one at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toy_methods

from kedit_core import Editor, EditRequest, Probe, hookimpl
from kedit_core.editing import cases
from kedit_core.plugins import Catalogue
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)
SUBJECTS = ("France", "Alice", "Bob", "Norway", "Oslo", "Peru")
PROTOCOLS = ("generate", "teacher_forced", "gen_len")


def facts() -> list[EditRequest]:
    return [
        EditRequest(
            prompt=f"The capital of {name} is",
            subject=name,
            target_new="Rome",
            case_id=name if number != 4 else SUBJECTS[3],  # one case of two requests
            rephrase_prompts=(f"{name} is ruled from",) if number % 2 else (),
            locality={"near": (Probe(prompt="The capital of Spain is", answers=("Madrid",)),)},
        )
        for number, name in enumerate(SUBJECTS)
    ]


def editor(method: str = "nudge", dtype: torch.dtype = torch.float32, **settings: Any) -> Editor:
    model, tokenizer = tiny("llama", dtype=dtype)
    return Editor(model, tokenizer, method, catalogue=CATALOGUE, **settings)


class Count:
    """How many groups of cases were read together, and of how many."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        real = cases.RowBranches

        def counting(model: Any, scope: Any, patches: Any) -> Any:
            self.sizes.append(len(patches))
            return real(model, scope, patches)

        monkeypatch.setattr(cases, "RowBranches", counting)


def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "row_fault", lambda model, patch: "one at a time, for the comparison")


@pytest.mark.parametrize("method", ["nudge", "nudge_one"])
@pytest.mark.parametrize("way", [None, "attached"])
def test_the_results_are_the_same(method: str, way: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    together = editor(method, way=way)
    before = Snapshot(together.model)
    found = together.edit(facts(), scenario="single", protocols=PROTOCOLS)
    assert count.sizes == [5] and before.differences(together.model) == []
    one_by_one(monkeypatch)
    wanted = editor(method, way=way).edit(facts(), scenario="single", protocols=PROTOCOLS)
    assert count.sizes == [5], "nothing was read together now"
    assert [patch.id for patch in found.patches] == [patch.id for patch in wanted.patches]
    assert found.evaluation is not None and wanted.evaluation is not None
    timed = ("efficiency.seconds", "efficiency.peak_memory")
    for name, result in wanted.evaluation.items():
        if name not in timed:
            assert found.evaluation[name] == result, name
    assert found.evaluation.keys() == wanted.evaluation.keys()
    assert wanted.evaluation["efficiency.patch_size"].cases.keys() == {*SUBJECTS} - {"Oslo"}
    said = [output["edited"] for output in wanted.evaluation["gen_free.reliability"].outputs]
    assert len(set(said)) > 2, "each edit changes what is said"


def test_groups_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    monkeypatch.setattr(cases, "_TOGETHER", 2)
    result = editor().edit(facts(), scenario="single")
    assert count.sizes == [2, 2, 1] and result.evaluation is not None
    assert list(result.evaluation["gen_free.reliability"].cases) == ["France", "Alice", "Bob", "Norway", "Peru"]
    tight = Count(monkeypatch)
    editor(memory_budget=1).edit(facts(), scenario="single")
    assert tight.sizes == [1] * 5


def test_rounding_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Merged into bfloat16 an edit is rounded, so such edits are read one at a time; attached ones need not be."""
    count = Count(monkeypatch)
    editor(dtype=torch.bfloat16).edit(facts(), scenario="single")
    assert count.sizes == []
    editor(dtype=torch.bfloat16, way="attached").edit(facts(), scenario="single")
    assert count.sizes == [5]


def test_nothing_is_read_together_without_an_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    count = Count(monkeypatch)
    assert editor().edit(facts(), scenario="single", evaluate=False).evaluation is None
    assert count.sizes == []


def test_metrics_find_the_patch_on_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin that looks at the model itself sees each case's edit, and records of its own edit."""
    seen: list[tuple[str, int, float]] = []

    class Looks:
        @hookimpl
        def evaluate(self, context: Any, requests: Any) -> None:
            (entry,) = context.stack.patches
            seen.append((entry.patch.id, len(requests), sum(context.records["edit_requests"])))

    result = editor(plugins=[Looks()]).edit(facts(), scenario="single")
    assert [(id, n) for id, n, _ in seen] == [(p.id, 2 if i == 3 else 1) for i, p in enumerate(result.patches)]
    assert [count for _, _, count in seen] == [1, 1, 1, 2, 1]


def test_a_stop_while_reading_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any) -> Any:
        raise KeyboardInterrupt

    e = editor()
    before = Snapshot(e.model)
    monkeypatch.setattr(cases, "read_together", stopped)
    with pytest.raises(KeyboardInterrupt):
        e.edit(facts(), scenario="single")
    assert before.differences(e.model) == [] and e.stack.patches == ()


def test_patches_of_before_are_measured_as_when_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """`evaluate_cases`: with patches that can be read together, and with one that cannot among them."""
    e = editor()
    before = Snapshot(e.model)
    result = e.edit(facts(), scenario="single", protocols=PROTOCOLS)
    groups = [[fact for fact in facts() if fact.case_id == case] for case in dict.fromkeys(f.case_id for f in facts())]
    count = Count(monkeypatch)
    real, second = cases.row_fault, result.patches[1].id
    monkeypatch.setattr(cases, "row_fault", lambda m, patch: "alone" if patch.id == second else real(m, patch))
    found = e.evaluate_cases(list(zip(result.patches, groups, strict=True)), protocols=PROTOCOLS)
    assert count.sizes == [4] and before.differences(e.model) == []
    assert result.evaluation is not None
    for name, wanted in result.evaluation.items():
        if not name.startswith("efficiency."):
            assert found[name].cases == wanted.cases and found[name].tag == wanted.tag, name


def test_a_patch_that_takes_the_place_of_the_one_before_is_read_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench_tools import catalogue, some_requests

    requests = some_requests(8)
    found = []
    for _ in range(2):
        on = Editor(*tiny("llama"), "gathering", catalogue=catalogue())
        on.edit(requests[:2], scenario="batch", evaluate=False)
        found.append(on.edit(requests[2:], scenario="single").evaluation)
        one_by_one(monkeypatch)
    assert [result.cases for result in found[0].values() if result.unit == "share"] == [
        result.cases for result in found[1].values() if result.unit == "share"
    ]
    assert [result.outputs for result in found[0].values()] == [result.outputs for result in found[1].values()]
