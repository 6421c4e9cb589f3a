"""The Editor: scenarios, results, and a model that is always left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import toy_methods
from attrs import evolve

from kedit_core import Editor, EditPatch, EditRequest, Probe, hookimpl
from kedit_core.editing import EditWarning
from kedit_core.errors import (
    BaseMismatchError,
    InputError,
    MethodError,
    PluginError,
    RequestError,
    StackDisturbedError,
    StackOrderError,
    UnknownNameError,
)
from kedit_core.plugins import Catalogue
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny

CATALOGUE = Catalogue.installed().including(*toy_methods.ALL)


def editor(method: str | None = "nudge", family: str = "llama", **settings: Any) -> Editor:
    model, tokenizer = tiny(family)
    return Editor(model, tokenizer, method, catalogue=CATALOGUE, **settings)


def fact(name: str = "a", **more: Any) -> EditRequest:
    subjects = {"a": "France", "b": "Alice", "c": "Bob"}
    fields: dict[str, Any] = {
        "prompt": f"The capital of {subjects[name]} is",
        "subject": subjects[name],
        "target_new": "Rome",
        "case_id": name,
    }
    return EditRequest(**{**fields, **more})


@pytest.fixture
def facts() -> list[EditRequest]:
    return [fact("a"), fact("b"), fact("c")]


def test_it_says_what_it_is() -> None:
    mine = editor()
    assert repr(mine) == "<Editor: nudge on LlamaForCausalLM, 0 patches on it>"
    mine.edit(fact(), evaluate=False)
    assert repr(mine).endswith("1 patch on it>") and repr(editor(None, "gpt2")).startswith("<Editor: no method on GPT2")


def test_batch_leaves_one_patch_on_the_model(facts: list[EditRequest]) -> None:
    e = editor()
    before = Snapshot(e.model)
    result = e.edit(facts)
    assert result.scenario == "batch"
    assert [entry.patch.id for entry in e.stack.patches] == [result.patch.id]
    assert len(result.patches) == 1
    assert Snapshot(e.model).weights != before.weights
    e.restore()
    assert before.differences(e.model) == []


def test_sequential_joins_its_rounds_bit_for_bit(facts: list[EditRequest]) -> None:
    one_by_one, at_once = editor(), editor()
    result = at_once.edit(facts, scenario="sequential")
    for patch in result.patches:
        one_by_one.apply(patch)
    assert Snapshot(one_by_one.model).weights == Snapshot(at_once.model).weights
    assert [entry.patch.id for entry in at_once.stack.patches] == [result.patch.id]
    assert result.patches[1].parents == (result.patches[0].id,)
    assert result.patch.parents == ()


def test_sequential_rounds_have_batch_size_requests(facts: list[EditRequest]) -> None:
    result = editor().edit(facts, scenario="sequential", batch_size=2)
    assert [len(patch.requests) for patch in result.patches] == [2, 1]


def test_single_restores_after_each_case_and_groups_by_case(facts: list[EditRequest]) -> None:
    e = editor()
    before = Snapshot(e.model)
    facts.append(fact("a", prompt="The mayor of France is"))
    seen: list[list[str | None]] = []
    result = e.edit(facts, scenario="single", on_patch=lambda patch, case: seen.append([r.case_id for r in case]))
    assert before.differences(e.model) == []
    assert seen == [["a", "a"], ["b"], ["c"]]
    assert all(patch.parents == () for patch in result.patches)
    with pytest.raises(InputError, match="separate patches"):
        _ = result.patch


def test_a_method_without_batch_goes_one_by_one(facts: list[EditRequest]) -> None:
    e = editor("nudge_one")
    result = e.edit(facts)
    assert result.scenario == "sequential"
    assert len(result.patches) == 3
    with pytest.raises(InputError, match="cannot edit in scenario 'batch'"):
        e.edit(facts, scenario="batch")
    with pytest.raises(InputError, match="leave batch_size at 1"):
        e.edit(facts, scenario="sequential", batch_size=2)


def test_a_case_of_several_requests_in_single_without_batch(facts: list[EditRequest]) -> None:
    twice = [fact("a"), fact("a", prompt="The mayor of France is")]
    result = editor("nudge_one").edit(twice, scenario="single")
    assert len(result.patches) == 1
    assert len(result.patch.requests) == 2


@pytest.mark.parametrize("count", [1, 3])
def test_single_leaves_an_extending_methods_patch_on(facts: list[EditRequest], count: int) -> None:
    e = editor("extending")
    first = e.edit(fact("a", prompt="The mayor of France is"), evaluate=False)
    before = Snapshot(e.model)
    result = e.edit(facts[:count], scenario="single", evaluate=False)
    assert len(result.patches) == count
    assert [entry.patch.id for entry in e.stack.patches] == [first.patch.id]
    assert before.differences(e.model) == []
    again = e.edit(fact("b"), evaluate=False)  # it goes on from the patch that stayed
    assert [entry.patch.id for entry in e.stack.patches] == [again.patch.id]
    assert again.patch.parents == ()


def test_a_patch_that_nobody_takes_off_is_said(facts: list[EditRequest]) -> None:
    class Refusing:
        @hookimpl
        def restore(self) -> bool:
            return False

    e = editor(plugins=[Refusing()])
    before = Snapshot(e.model)
    with pytest.raises(MethodError, match="was not taken off"):
        e.edit(facts, scenario="single", evaluate=False)
    assert before.differences(e.model) == []
    patch = e.edit(facts[0], evaluate=False).patch
    for take_off in (lambda: e.remove(patch), e.restore):
        with pytest.raises(MethodError, match="was not taken off"):
            take_off()


def test_the_second_edit_stands_on_the_first() -> None:
    e = editor()
    first = e.edit(fact("a"))
    second = e.edit(fact("b"))
    assert second.patch.parents == (first.patch.id,)
    e.remove(first.patch)
    assert [entry.patch.id for entry in e.stack.patches] == [second.patch.id]
    other = editor()
    with pytest.raises(StackOrderError):
        other.apply(second.patch)


def test_results_never_alias_live_weights() -> None:
    e = editor()
    result = e.edit(fact())
    before = result.patch.to_bytes()
    with torch.no_grad():
        for parameter in e.model.parameters():
            parameter.data = parameter.data + 1
    assert result.patch.to_bytes() == before


def test_base_and_edited_answers_differ_in_the_metrics_only_where_they_should() -> None:
    request = fact(
        rephrase_prompts=("France has the capital",),
        locality={"other": (Probe(prompt="Alice works in the city of", answers=("Paris",)),)},
    )
    e = editor(hparams={"layer": 2, "strength": 500.0})
    before = e.answer(request.prompt)
    result = e.edit(request, protocols=("generate", "teacher_forced"))
    assert result.evaluation is not None
    metrics = result.evaluation.metrics
    assert metrics["tf_token.reliability"].value is not None
    outputs = metrics["gen_free.reliability"].outputs
    assert outputs[0]["base"] == before
    assert outputs[0]["edited"] == e.answer(request.prompt) != before
    assert metrics["gen_free.locality"].tag.endswith("+merged")
    e.restore()
    assert e.answer(request.prompt) == before


def test_unedited_model_has_locality_one() -> None:
    request = fact(locality={"other": (Probe(prompt="Alice works in the city of", answers=("Paris",)),)})
    evaluation = editor(None).evaluate(request, protocols=("generate", "teacher_forced"))
    assert evaluation.metrics["gen_free.locality"].value == 1.0
    assert evaluation.metrics["tf_token.locality"].value == 1.0


@pytest.mark.parametrize("scenario", ["single", "batch", "sequential"])
def test_a_bad_request_in_the_middle_stops_before_any_work(facts: list[EditRequest], scenario: str) -> None:
    e = editor("nudge_one" if scenario != "batch" else "nudge")
    before = Snapshot(e.model)
    facts[1] = fact("b", target_new="  ")
    facts.append(fact("c", subject_span=(90, 95)))
    with pytest.raises(RequestError) as caught:
        e.edit(facts, scenario=scenario)
    assert "request 2 (case b)" in str(caught.value)
    assert "request 4 (case c)" in str(caught.value)
    assert before.differences(e.model) == []


@pytest.mark.parametrize("scenario", ["single", "sequential"])
def test_a_plugin_error_halfway_leaves_the_model_as_found(facts: list[EditRequest], scenario: str) -> None:
    e = editor("fails_halfway")
    kept = editor()
    earlier = kept.edit(fact("c")).patch
    e.apply(earlier)
    before = Snapshot(e.model)
    with pytest.raises(PluginError, match="fails_halfway") as caught:
        e.edit(facts, scenario=scenario)
    assert caught.value.hook == "compute_patch"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert before.differences(e.model) == []
    assert [entry.patch.id for entry in e.stack.patches] == [earlier.id]


@pytest.mark.parametrize("hook", ["compute_patch", "apply_to_model", "evaluate"])
@pytest.mark.parametrize("scenario", ["single", "batch", "sequential"])
def test_ctrl_c_anywhere_leaves_the_model_as_found(facts: list[EditRequest], hook: str, scenario: str) -> None:
    class Interrupts:
        @hookimpl(wrapper=True)
        def compute_patch(self) -> Iterator[None]:
            result = yield
            return self.stop("compute_patch", result)

        @hookimpl(wrapper=True)
        def apply_to_model(self) -> Iterator[None]:
            result = yield
            return self.stop("apply_to_model", result)

        @hookimpl
        def evaluate(self) -> None:
            self.stop("evaluate", None)

        def stop(self, where: str, result: Any) -> Any:
            if where == hook:
                raise KeyboardInterrupt
            return result

    e = editor(plugins=[Interrupts()])
    before = Snapshot(e.model)
    with pytest.raises(KeyboardInterrupt):
        e.edit(facts, scenario=scenario)
    assert before.differences(e.model) == []
    assert e.stack.patches == ()


@pytest.mark.parametrize("scenario", ["single", "batch", "sequential"])
def test_ctrl_c_while_the_result_is_put_together(
    facts: list[EditRequest], scenario: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(**_: Any) -> None:
        raise KeyboardInterrupt

    e = editor()
    before = Snapshot(e.model)
    monkeypatch.setattr("kedit_core.editing.editor.EditResult", stop)
    with pytest.raises(KeyboardInterrupt):
        e.edit(facts, scenario=scenario)
    assert before.differences(e.model) == [] and e.stack.patches == ()
    assert e.context().previous is None


@pytest.mark.parametrize("enabled", [True, False])
def test_a_failure_leaves_the_gradient_mode_as_found(facts: list[EditRequest], enabled: bool) -> None:
    class SwitchesAndFails:
        @hookimpl
        def evaluate(self) -> None:
            torch.set_grad_enabled(not enabled)
            raise KeyboardInterrupt

    e = editor(plugins=[SwitchesAndFails()])
    with torch.set_grad_enabled(enabled):
        with pytest.raises(KeyboardInterrupt):
            e.edit(facts)
        assert torch.is_grad_enabled() is enabled


@pytest.mark.parametrize("scenario", ["batch", "sequential"])
def test_requests_that_contradict_each_other_are_told(scenario: str) -> None:
    def asked(prompt: str, target: str, **more: Any) -> EditRequest:
        return EditRequest(prompt=prompt, target_new=target, **more)

    france, chad = "The capital of France is", "The capital of Chad is"
    given = [asked(france, "Rome"), asked(chad, "Oslo"), asked(france, "Bern"), asked(france, "Rome ")]
    (warning,) = (w for w in editor().edit(given, scenario=scenario).warnings if w.code == "contradicting_requests")
    assert warning.number == 1 and "keep one target" in warning.remedy
    assert warning.message == f"{france!r} is to be completed with 'Rome' and with 'Bern'"
    many = [asked(prompt, target) for prompt in (france, chad) for target in ("Rome", "Oslo", "Bern", "Paris")]
    (warning,) = (w for w in editor().edit(many, scenario=scenario).warnings if w.code == "contradicting_requests")
    assert warning.number == 2 and "and 1 more, and 1 more prompts" in warning.message


def test_what_is_no_contradiction() -> None:
    rome, bern = (EditRequest(prompt="The capital of France is", target_new=name) for name in ("Rome", "Bern"))
    other = EditRequest(prompt="The mayor of France is", target_new="Bern")
    for requests, scenario in (([rome, rome, other], "batch"), ([rome, bern], "single")):
        assert "contradicting_requests" not in {w.code for w in editor().edit(requests, scenario=scenario).warnings}


def test_a_method_that_changes_the_model_is_refused_and_undone() -> None:
    e = editor("leaves_a_hook")
    before = Snapshot(e.model)
    with pytest.raises(MethodError, match="a hook on"):
        e.edit(fact())
    assert before.differences(e.model) == []


@pytest.mark.parametrize("call", ["compute", "edit"])
def test_something_else_than_a_patch_is_laid_at_the_methods_door(call: str) -> None:
    with pytest.raises(PluginError, match=r"returns_text.*kedit-local.*returned str.*not EditPatch") as told:
        getattr(editor("returns_text"), call)(fact())
    assert (told.value.plugin, told.value.distribution, told.value.hook) == (
        "returns_text",
        "kedit-local",
        "compute_patch",
    )


def test_an_operation_that_was_not_declared_is_refused() -> None:
    with pytest.raises(MethodError, match="dense_delta"):
        editor("emits_undeclared").edit(fact())


def test_applied_takes_the_patch_off_also_after_an_error() -> None:
    patch = editor().edit(fact()).patch
    other = editor(None)
    before = Snapshot(other.model)
    with pytest.raises(ZeroDivisionError), other.applied(patch):
        assert before.differences(other.model)
        raise ZeroDivisionError
    assert before.differences(other.model) == []


def test_saved_patches_apply_in_another_editor(tmp_path: Path) -> None:
    e = editor()
    result = e.edit(fact())
    result.patch.save(tmp_path / "p.safetensors")
    other = editor(None)
    other.apply(EditPatch.load(tmp_path / "p.safetensors"))
    assert e.generate("The capital of France is") == other.generate("The capital of France is")


def test_a_wrong_model_is_refused() -> None:
    patch = editor().edit(fact()).patch
    other = editor(None)
    with torch.no_grad():
        other.adapter.mlp_out(1).weight[0, 0] += 1
    with pytest.raises(BaseMismatchError):
        other.apply(patch)


def test_compute_applies_nothing(facts: list[EditRequest]) -> None:
    e = editor()
    before = Snapshot(e.model)
    patch = e.compute(facts)
    assert before.differences(e.model) == []
    assert len(patch.requests) == 3


def test_plan_does_nothing(facts: list[EditRequest]) -> None:
    e = editor("nudge_one")
    before = Snapshot(e.model)
    plan = e.plan(facts)
    assert plan["rounds"] == 3
    assert plan["scenario"] == "sequential"
    assert plan["hparams"]["values"]["layer"] == 1
    assert before.differences(e.model) == []


def test_inputs_are_refused_with_one_sentence() -> None:
    with pytest.raises(UnknownNameError, match="nudge"):
        editor("nudg")
    with pytest.raises(InputError, match="no method"):
        editor(None).edit(fact())
    for call in ("edit", "compute", "plan", "evaluate"):
        with pytest.raises(InputError, match=f"nothing to {call}: .* empty"):
            getattr(editor(), call)([])
    with pytest.raises(InputError, match="no scenario 'parallel'"):
        editor().edit(fact(), scenario="parallel")
    with pytest.raises(InputError, match="no way"):
        editor(way="sideways")
    with pytest.raises(InputError, match="without a method"):
        editor(None, hparams={"layer": 1})


def test_attached_way_is_said_in_the_tags_and_gives_the_same_float32_answers() -> None:
    merged, attached = editor(), editor(way="attached")
    a, b = merged.edit(fact()), attached.edit(fact())
    assert b.way == "attached"
    assert a.evaluation is not None
    assert b.evaluation is not None
    assert a.evaluation.metrics["gen_free.reliability"].tag.endswith("+merged")
    assert b.evaluation.metrics["gen_free.reliability"].tag.endswith("+attached")
    assert merged.generate("The capital of France is") == attached.generate("The capital of France is")


def test_each_editor_has_its_own_plugins(facts: list[EditRequest]) -> None:
    class Counts:
        def __init__(self) -> None:
            self.calls = 0

        @hookimpl(wrapper=True)
        def compute_patch(self) -> Iterator[None]:
            self.calls += 1
            return (yield)

    counting = Counts()
    editor(plugins=[counting]).edit(facts, scenario="sequential")
    editor().edit(facts)
    assert counting.calls == 3


def test_trainable_leaves_everything_as_found_and_gives_the_delta() -> None:
    e = editor()
    name = e.adapter.mlp_out_weight(1)
    context = e.context()
    before = Snapshot(e.model)
    with context.trainable([name]) as masters:
        optimiser = torch.optim.SGD(masters.parameters(), lr=0.1)
        ids = e.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
        e.model(ids, labels=ids).loss.backward()
        masters.collect()
        optimiser.step()
        masters.write()
        delta = masters.delta(name)
        assert torch.equal(dict(e.model.named_parameters())[name], masters[name])
    assert delta.abs().max() > 0
    assert before.differences(e.model) == []


def test_trainable_undoes_itself_after_an_error() -> None:
    e = editor()
    context = e.context()
    before = Snapshot(e.model)
    with pytest.raises(ZeroDivisionError), context.trainable([e.adapter.mlp_out_weight(1)]) as masters:
        with torch.no_grad():
            next(iter(masters.parameters())).add_(1)
        masters.write()
        raise ZeroDivisionError
    assert before.differences(e.model) == []
    with pytest.raises(InputError, match="no parameter 'nowhere'"), context.trainable(["nowhere"]):
        pass


@pytest.mark.parametrize("seed", [-1, 1.5, "a", None, True, 1 << 63])
def test_a_seed_that_no_patch_could_record_is_refused_at_once(seed: Any) -> None:
    with pytest.raises(InputError, match=r"the seed is .*; give a whole number from 0 to"):
        editor(seed=seed)


def test_one_mapping_is_no_list_of_requests() -> None:
    with pytest.raises(RequestError, match="is a dict, expected an EditRequest"):
        editor().edit({"prompt": "The capital of France is", "target_new": "Rome"})  # type: ignore[arg-type]


class TakesAGradient:
    """What a method does that trains something."""

    @hookimpl(wrapper=True)
    def compute_patch(self) -> Any:
        with torch.enable_grad():
            weight = torch.ones(2, requires_grad=True)
            (weight * weight).sum().backward()
        return (yield)


def test_the_callers_inference_mode_is_no_hindrance() -> None:
    e = editor(plugins=[TakesAGradient()])
    wanted = e.compute(fact("a"))
    with torch.inference_mode():
        assert e.edit(fact("a"), evaluate=False).patch.id == wanted.id
        assert torch.is_inference_mode_enabled()


def test_a_model_made_in_inference_mode_is_edited() -> None:
    with torch.inference_mode():
        e = editor()
    e.edit(fact("a"))
    e.restore()


def test_what_is_no_longer_on_the_model_is_not_measured() -> None:
    e = editor()
    found = {name: tensor.clone() for name, tensor in e.model.state_dict().items()}
    e.edit(fact("a"))
    e.model.load_state_dict(found)
    with pytest.raises(StackDisturbedError, match="written to by something else"):
        e.evaluate(fact("a"))


def test_a_base_that_was_written_to_is_read_again() -> None:
    e = editor(None)
    request = fact(locality={"other": (Probe(prompt="Alice works in the city of", answers=("Paris",)),)})
    first = e.evaluate(request)
    with torch.no_grad():
        for parameter in e.model.parameters():
            parameter.add_(0.05 * torch.ones_like(parameter))
    second = e.evaluate(request)
    assert second.metrics["gen_free.locality"].value == 1.0
    assert second.manifest["model_digest"] != first.manifest["model_digest"]


def test_what_is_remembered_survives_edits_but_not_a_moved_model() -> None:
    e = editor()
    made: list[int] = []
    e.context().remember("key", lambda: made.append(1))
    e.edit(fact(), evaluate=False)
    e.context().remember("key", lambda: made.append(2))
    assert made == [1]
    e.restore()
    e.context().remember("key", lambda: made.append(3))
    assert made == [1]
    e.stack.to(torch.bfloat16)
    e.context().remember("key", lambda: made.append(4))
    assert made == [1, 4]


def test_the_callers_autocast_changes_nothing() -> None:
    plain = editor().edit(fact(), evaluate=False).patch
    with torch.autocast("cpu", torch.bfloat16):
        assert editor().edit(fact(), evaluate=False).patch.id == plain.id


def test_options_that_the_method_does_not_read_are_refused() -> None:
    with pytest.raises(InputError, match="no option 'corpu'"):
        editor(options={"corpu": "text.txt"})


def test_a_model_object_belongs_in_the_constructor() -> None:
    model, _ = tiny("llama")
    with pytest.raises(InputError, match=r"Editor\(model, tokenizer, method\)"):
        Editor.from_pretrained(model, catalogue=CATALOGUE)  # type: ignore[arg-type]


def test_results_are_short_to_look_at(facts: list[EditRequest]) -> None:
    result = editor().edit(facts, protocols=("generate",))
    assert len(repr(result)) < 600
    assert "gen_free.reliability" in repr(result)
    assert len(repr(result.patch)) < 200
    assert ", 1 request>" in repr(evolve(result.patch, requests=result.patch.requests[:1]))
    odd = EditWarning(code="odd", message="is odd", number=1.0, remedy="wait")
    assert ", 1 warning:" in repr(evolve(result, warnings=(odd,)))
    assert result.patch.id[:12] in repr(result.patch)
    assert "float32 [32, 1]" in repr(result.patch.operations[0])
