"""One fact out of a patch: which one is meant, what must hold before, and a model that is as it was afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import toy_methods
from attrs import evolve

from kedit_core import Editor, EditPatch, EditRequest, hookimpl
from kedit_core.editing import EditWarning
from kedit_core.editing.facts import request_of, requests_named
from kedit_core.errors import (
    BaseMismatchError,
    HyperParamsError,
    InputError,
    MethodError,
    PluginError,
    StackOrderError,
    UnknownNameError,
)
from kedit_core.patches import PrivateRequests
from kedit_core.plugins import Catalogue
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)
LANDS = {"a": "France", "b": "Alice", "c": "Bob"}


def editor(method: str | None = "droppable", seed: int = 0, model_seed: int = 0, **settings: Any) -> Editor:
    return Editor(*tiny("llama", seed=model_seed), method, catalogue=CATALOGUE, seed=seed, **settings)


def fact(name: str, **more: Any) -> EditRequest:
    fields: dict[str, Any] = {
        "prompt": f"The capital of {LANDS[name]} is",
        "subject": LANDS[name],
        "target_new": "Rome",
        "case_id": name,
    }
    return EditRequest(**{**fields, **more})


FACTS = [fact("a"), fact("b"), fact("c"), fact("b", prompt="The mayor of Alice is")]
NAMELESS = [evolve(each, case_id=None) for each in FACTS[:3]]


@pytest.fixture(scope="module")
def patch() -> EditPatch:
    return editor().edit(FACTS, evaluate=False).patch


@pytest.fixture(scope="module")
def nameless() -> EditPatch:
    return editor().edit(NAMELESS, evaluate=False).patch


def prompts(patch: EditPatch) -> list[str]:
    return [each["prompt"] for each in patch.requests]  # type: ignore[union-attr]


# ------------------------------------------------------------------ which fact
def test_a_case_goes_as_a_whole(patch: EditPatch) -> None:
    e = editor()
    before = Snapshot(e.model)
    made = e.drop(patch, "b")
    assert before.differences(e.model) == [] and e.stack.patches == ()
    assert prompts(made) == [FACTS[0].prompt, FACTS[2].prompt]
    # a delta each, so the patch without them is the one that the other facts make
    assert made.to_bytes() == editor().edit([FACTS[0], FACTS[2]], evaluate=False).patch.to_bytes()


def test_the_fact_may_be_named_by_number_or_by_id(patch: EditPatch, nameless: EditPatch) -> None:
    e = editor()
    middle = request_of(nameless.requests[1]).id  # type: ignore[index]
    assert {e.drop(nameless, name).id for name in ("2", "#2", middle)} == {e.drop(nameless, "#2").id}
    assert prompts(e.drop(nameless, "#2")) == [NAMELESS[0].prompt, NAMELESS[2].prompt]
    # beside case ids a bare number is no position
    assert prompts(e.drop(patch, "#1")) == [each.prompt for each in FACTS[1:]]
    with pytest.raises(InputError, match=r"no case '1'; it has a, b, c$"):
        e.drop(patch, "1")
    numbered = evolve(
        patch, requests=[{**each, "case_id": "3"} for each in patch.requests[:1]] + list(patch.requests[1:])
    )  # type: ignore[index]
    assert requests_named(numbered, "3") == [request_of(numbered.requests[0]).id]  # type: ignore[index]


@pytest.mark.parametrize("name", ["d", "#0", "#5", "#-1", "#", "", "0123456789abcdef"])
def test_an_unknown_fact_is_refused(patch: EditPatch, name: str) -> None:
    with pytest.raises(InputError, match="has no case"):
        editor().drop(patch, name)


def test_the_message_lists_some_names_only(nameless: EditPatch) -> None:
    many = evolve(nameless, requests=[{**nameless.requests[0], "prompt": f"{i} is"} for i in range(20)])  # type: ignore[index]
    with pytest.raises(InputError, match=r"it has #1, #2, #3, #4, #5, #6, #7, #8 and 12 more$"):
        requests_named(many, "x")


def test_equal_requests_go_together() -> None:
    given = [NAMELESS[0], NAMELESS[1], NAMELESS[0]]
    e = editor()
    both = e.edit(given, evaluate=False).patch
    e.restore()
    for name in ("#1", "#3", request_of(both.requests[0]).id):  # type: ignore[index]
        assert prompts(e.drop(both, name)) == [given[1].prompt]
    assert prompts(e.drop(both, "#2")) == [given[0].prompt, given[2].prompt]


def test_the_last_fact_and_private_facts_are_refused(patch: EditPatch) -> None:
    e = editor()
    one = e.drop(e.drop(patch, "b"), "a")
    for name in ("c", "#1"):
        with pytest.raises(InputError, match=r"nothing would be left .* remove the whole patch instead"):
            e.drop(one, name)
    same = evolve(one, requests=[*one.requests, *one.requests])  # type: ignore[misc]
    with pytest.raises(InputError, match=r"nothing would be left .* \(requests that are equal go together\); remove"):
        e.drop(same, "#1")
    private = evolve(patch, requests=PrivateRequests.of([each.fact for each in FACTS]))
    with pytest.raises(InputError, match="are private"):
        e.drop(private, "a")


# ------------------------------------------------------------------ on which Editor
def test_the_editor_must_be_the_one_that_made_it(patch: EditPatch) -> None:
    for e, why in (
        (editor(None), "made by 'droppable' and this Editor has no method"),
        (editor("nudge"), "made by 'droppable' and this Editor has method 'nudge'"),
        (editor(hparams={"strength": 3.0}), "made with strength 8.0 and not 3.0; make an Editor with Editor.for_patch"),
        (editor(seed=5), "made with seed 0 and not 5"),
    ):
        with pytest.raises(InputError, match=why):
            e.drop(patch, "b")
    assert editor(seed=5).drop(evolve(patch, seed=None), "a").requests  # no seed was recorded, so none can differ


def test_a_method_without_the_hook_says_so() -> None:
    made = editor("nudge").edit(FACTS[:2], evaluate=False).patch
    with pytest.raises(InputError, match="method 'nudge' cannot take single facts out of a patch"):
        editor("nudge").drop(made, "a")


def test_another_base_is_refused(patch: EditPatch) -> None:
    e = editor(model_seed=1)
    before = Snapshot(e.model)
    with pytest.raises(BaseMismatchError, match=r"model\.layers\.1\.mlp\.down_proj\.weight"):
        e.drop(patch, "b")
    place = patch.places[0]
    blind = evolve(patch, base=evolve(patch.base, tensors={place: evolve(patch.base.tensors[place], sha256={})}))
    with pytest.raises(BaseMismatchError, match="cannot be compared"):
        e.drop(blind, "b")
    assert e.drop(blind, "b", allow_unverified=True).requests
    assert before.differences(e.model) == []


def test_a_copy_elsewhere_keeps_the_name_of_the_base(patch: EditPatch) -> None:
    named = editor(name="factworld:llama").edit(FACTS[:3], evaluate=False).patch
    made = editor(name=None).drop(named, "a")
    assert made.base == named.base and made.base.name == "factworld:llama"


# ------------------------------------------------------------------ what is on the model meanwhile
class Watcher:
    """Notes what is on the model when a request is dropped."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[str], dict[str, str], list[str | None]]] = []

    @hookimpl
    def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> None:
        on = [entry.patch.id for entry in context.stack.patches]
        weights = Snapshot(context.model).weights
        self.seen.append((on, weights, [request.case_id for request in context.requests]))


def test_the_parents_alone_are_on_the_model_while_it_is_made() -> None:
    watcher = Watcher()
    e = editor(plugins=[watcher])
    parent = e.edit(fact("a", prompt="The mayor of France is"), evaluate=False).patch
    beneath = Snapshot(e.model).weights
    made = e.edit(FACTS[:3], evaluate=False).patch
    e.edit(fact("a", prompt="The river of France is"), evaluate=False)
    before, on = Snapshot(e.model), e.stack.patches
    assert made.parents == (parent.id,)
    without = e.drop(made, "b")
    assert watcher.seen == [([parent.id], beneath, ["a", "b", "c"])]
    assert without.parents == made.parents
    assert before.differences(e.model) == [] and e.stack.patches == on
    e.restore()
    e.apply(parent)
    e.apply(without)


def test_parents_that_are_not_there_are_named() -> None:
    e = editor()
    parents = [e.edit(fact(name, prompt=f"The mayor of {LANDS[name]} is"), evaluate=False).patch for name in "ab"]
    made = e.edit(FACTS[:3], evaluate=False).patch
    e.restore()
    with pytest.raises(StackOrderError, match=f"on top of {parents[0].id}, {parents[1].id}, not on the model now"):
        e.drop(made, "b")
    e.apply(parents[0])
    with pytest.raises(StackOrderError, match=f"on top of {parents[1].id}, not on the model now; apply that first"):
        e.drop(made, "b")
    e.restore()
    swapped = evolve(parents[1], parents=())
    other = evolve(made, parents=(parents[0].id, swapped.id))
    e.apply(swapped)
    e.apply(parents[0])
    with pytest.raises(StackOrderError, match="are on the model in another order"):
        e.drop(other, "b")


def test_an_extending_methods_patch_replaces_none() -> None:
    """context.previous would make new_patch leave a parent out."""
    seen: list[Any] = []

    class Seen:
        @hookimpl
        def drop_request(self, context: Any) -> None:
            seen.append(context.previous)

    e = editor(plugins=[Seen()])
    made = e.edit(FACTS[:2], evaluate=False).patch
    e.drop(made, "a")
    assert seen == [None]


@pytest.mark.parametrize("above", [False, True])
def test_a_failure_leaves_everything_as_it_was(patch: EditPatch, above: bool) -> None:
    class Failing:
        @hookimpl
        def drop_request(self, context: Any) -> None:
            context.model.train()
            raise MethodError("no such value in the state")

    e = editor(plugins=[Failing()])
    if above:
        e.apply(patch)
    before, on = Snapshot(e.model), e.stack.patches
    with pytest.raises(MethodError, match="no such value"):
        e.drop(patch, "b")
    assert before.differences(e.model) == [] and e.stack.patches == on


def test_gradients_can_be_taken_whatever_the_callers_mode(patch: EditPatch) -> None:
    class Gradients:
        @hookimpl
        def drop_request(self, context: Any) -> None:
            with torch.enable_grad():
                leaf = torch.ones(3, requires_grad=True)
                (leaf * 2).sum().backward()

    with torch.inference_mode():
        assert editor(plugins=[Gradients()]).drop(patch, "b").requests


# ------------------------------------------------------------------ what the method gives back
def answering(make: Callable[[EditPatch], Any]) -> Any:
    class Answer:
        @hookimpl
        def drop_request(self, patch: EditPatch) -> Any:
            return make(patch)

    return Answer()


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda patch: patch, "does not hold the 3 other requests"),
        (lambda patch: evolve(patch, requests=PrivateRequests.of([])), "does not hold the 3 other requests"),
        (lambda patch: evolve(patch, requests=patch.requests[1:], parents=("0" * 64,)), "stands on other patches"),
        (
            lambda patch: evolve(patch, requests=patch.requests[1:], method=evolve(patch.method, name="else")),
            "names the method 'else'",
        ),
        (
            lambda patch: evolve(
                patch,
                requests=patch.requests[1:],
                operations=[toy_dense(patch)],
            ),
            "operations of type dense_delta",
        ),
    ],
)
def test_a_wrong_patch_is_not_handed_on(patch: EditPatch, make: Callable[[EditPatch], Any], why: str) -> None:
    with pytest.raises(MethodError, match=f"method 'droppable' dropped a request and gave a patch that .*{why}"):
        editor(plugins=[answering(make)]).drop(patch, "a")


def toy_dense(patch: EditPatch) -> Any:
    from kedit_core.patches import DenseDelta

    delta: Any = patch.operations[0]
    return DenseDelta(delta.place, delta.left @ delta.right)


def test_what_is_no_patch_and_no_answer(patch: EditPatch, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PluginError, match="returned str from drop_request, not EditPatch"):
        editor(plugins=[answering(lambda patch: "text")]).drop(patch, "a")
    import toy_implementations

    class Cannot(toy_implementations.Droppable):
        @hookimpl
        def drop_request(self, context: Any, patch: EditPatch, request_id: str) -> None:
            return None

    monkeypatch.setattr(toy_implementations, "Droppable", Cannot)
    with pytest.raises(MethodError, match="cannot take this fact out"):
        editor().drop(patch, "a")


def test_a_method_that_writes_is_refused(patch: EditPatch) -> None:
    class Writing:
        @hookimpl
        def drop_request(self, context: Any) -> None:
            with torch.no_grad():
                context.adapter.mlp_out(0).weight.mul_(1.5)

    with pytest.raises(MethodError, match=r"\(drop_request\) left the model changed \(the weights of"):
        editor(plugins=[Writing()]).drop(patch, "a")


def test_rounds_are_the_methods_to_take_apart() -> None:
    e = editor()
    joined = e.edit(FACTS[:3], scenario="sequential", evaluate=False).patch
    assert e.drop(joined, "b").places == joined.places
    assert prompts(e.drop(joined, "b")) == [FACTS[0].prompt, FACTS[2].prompt]


def test_warnings_are_handed_on(patch: EditPatch) -> None:
    class Warning:
        @hookimpl
        def drop_request(self, context: Any) -> None:
            context.warn("large_residual", 2.0, "look at it")

    heard: list[EditWarning] = []
    editor(plugins=[Warning()]).drop(patch, "b", on_warning=heard.append)
    assert [(each.code, each.number) for each in heard] == [("large_residual", 2.0)]


# ------------------------------------------------------------------ an Editor for a patch
def test_an_editor_for_a_patch(tmp_path: Any) -> None:
    model, tokenizer = tiny("llama")
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    made = editor(hparams={"layer": 2, "strength": 3.0}, seed=4).edit(FACTS[:2], evaluate=False).patch
    e = Editor.for_patch(made, tmp_path, catalogue=CATALOGUE)
    assert e.seed == 4 and e.settings is not None and e.settings.hparams.to_dict() == made.hparams
    assert prompts(e.drop(made, "a")) == [FACTS[1].prompt]
    with pytest.raises(InputError, match="does not name the LlamaForCausalLM it is for; give the model"):
        Editor.for_patch(made, catalogue=CATALOGUE)
    with pytest.raises(UnknownNameError, match="droppable") as caught:
        Editor.for_patch(made, tmp_path, catalogue=Catalogue.installed())
    assert any(made.method.distribution in note for note in caught.value.__notes__)
    with pytest.raises(HyperParamsError, match=r"the settings of patch .*\n.*layr"):
        Editor.for_patch(evolve(made, hparams={"layr": 1}), tmp_path, catalogue=CATALOGUE)
