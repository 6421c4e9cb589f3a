"""Plans: the method's estimates, and the memory there is for them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import toy_methods
from torch import nn

from kedit_core import Editor, EditRequest, hookimpl
from kedit_core.editing.planning import memory, plan_faults
from kedit_core.errors import MethodError, PluginError
from kedit_core.plugins import Catalogue
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)
FACTS = [EditRequest(prompt=f"The capital of {land} is", target_new="Rome") for land in ("France", "Alice", "Bob")]


def editor(method: str = "droppable", **settings: Any) -> Editor:
    return Editor(*tiny("llama"), method, catalogue=CATALOGUE, **settings)


def planning(**told: Any) -> Any:
    class Plan:
        @hookimpl
        def plan(self, context: Any) -> dict[str, Any]:
            return told

    return Plan()


def test_what_the_method_tells_and_what_the_core_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=12345))
    e = editor()
    before = Snapshot(e.model)
    plan = e.plan(FACTS, scenario="sequential", batch_size=2)
    assert before.differences(e.model) == []
    assert (plan["requests"], plan["rounds"], plan["scenario"]) == (3, 2, "sequential")
    # the method speaks of all requests together: nothing is multiplied by the rounds
    assert (plan["seconds"], plan["patch_bytes"], plan["memory_bytes"]) == (1.5, 1500, 1000)
    assert plan["places"] == ["model.layers.1.mlp.down_proj.weight"]
    assert plan["notes"] == ["one delta for each fact"]
    assert plan["model_bytes"] == sum(
        each.numel() * each.element_size() for each in (*e.model.parameters(), *e.model.buffers())
    )
    assert (plan["device"], plan["available_bytes"], plan["fits"]) == ("cpu", 12345, True)
    assert json.loads(json.dumps(plan, allow_nan=False)) == plan


def test_a_method_that_tells_nothing() -> None:
    plan = editor("nudge").plan(FACTS)
    assert [plan[key] for key in ("places", "seconds", "memory_bytes", "patch_bytes", "fits")] == [None] * 5
    assert plan["notes"] == [] and plan["operations"] == ["low_rank_delta"] and plan["available_bytes"] > 0


def test_the_hook_sees_all_requests_and_the_scenario() -> None:
    seen: list[tuple[int, int, str]] = []

    class Plan:
        @hookimpl
        def plan(self, context: Any, requests: Any) -> None:
            seen.append((len(requests), len(context.requests), context.scenario))

    editor(plugins=[Plan()]).plan(FACTS, scenario="single")
    assert seen == [(3, 3, "single")]


def test_what_does_not_fit_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=999))
    assert editor().plan(FACTS)["fits"] is False


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Free on the device, and what torch has reserved there without using it; on the device with most of the model."""
    device = torch.device("cuda", 1)

    class Parameter:
        def __init__(self, size: int, where: torch.device) -> None:
            self.device, self._size = where, size

        def numel(self) -> int:
            return self._size

        def element_size(self) -> int:
            return 2

    class Model(nn.Module):
        def parameters(self, recurse: bool = True) -> Any:
            return iter((Parameter(10, torch.device("cpu")), Parameter(100, device)))

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda where: (1000 * where.index, 4000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda where: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda where: 200)
    assert memory(Model(), 1100) == {"model_bytes": 220, "device": "cuda:1", "available_bytes": 1100, "fits": True}
    assert memory(Model(), 1101)["fits"] is False


def test_where_nobody_can_tell_what_is_free() -> None:
    assert memory(nn.Linear(2, 2, device="meta"), 5) == {
        "model_bytes": 24,
        "device": "meta",
        "available_bytes": None,
        "fits": None,
    }


@pytest.mark.parametrize(
    ("told", "why"),
    [
        ({"place": ["w"]}, "'place' is no key of a plan"),
        ({"places": "w"}, "places is 'w', not a list of names"),
        ({"seconds": -1.0}, "seconds is -1.0, not a number of seconds"),
        ({"seconds": float("inf")}, "seconds is inf"),
        ({"seconds": True}, "seconds is True"),
        ({"memory_bytes": 1.5}, "memory_bytes is 1.5, not a whole number of bytes"),
        ({"patch_bytes": "2 MB"}, "patch_bytes is '2 MB'"),
        ({"notes": [1]}, r"notes is \[1\], not a list of sentences"),
    ],
)
def test_what_is_no_plan_is_laid_at_the_methods_door(told: dict[str, Any], why: str) -> None:
    assert len(plan_faults(told)) == 1
    with pytest.raises(PluginError, match=f"method 'droppable' of .* made a plan in which {why}"):
        editor(plugins=[planning(**told)]).plan(FACTS)


def test_tuples_and_none_are_fine() -> None:
    plan = editor(plugins=[planning(places=("a", "b"), seconds=None, memory_bytes=0, notes=())]).plan(FACTS)
    assert (plan["places"], plan["seconds"], plan["memory_bytes"], plan["notes"]) == (["a", "b"], None, 0, [])


def test_a_plan_that_leaves_the_model_changed_is_refused() -> None:
    class Plan:
        @hookimpl
        def plan(self, context: Any) -> None:
            with torch.no_grad():
                context.adapter.mlp_out(0).weight.mul_(1.5)

    with pytest.raises(MethodError, match=r"\(plan\) left the model changed"):
        editor(plugins=[Plan()]).plan(FACTS)


def test_a_probe_may_take_gradients_whatever_the_callers_mode() -> None:
    class Plan:
        @hookimpl
        def plan(self, context: Any) -> dict[str, Any]:
            with torch.enable_grad():
                leaf = torch.ones(3, requires_grad=True)
                (leaf * 2).sum().backward()
            return {"seconds": 1}

    with torch.inference_mode():
        assert editor(plugins=[Plan()]).plan(FACTS)["seconds"] == 1
