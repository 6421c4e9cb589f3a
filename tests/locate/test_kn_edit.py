"""Knowledge neurons' edit: what is written where, on whose authority, and that it comes off again; checks 4 and 8."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from torch import Tensor

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.errors import MethodError, RequestError, StackOrderError, UnsupportedModelError
from kedit_core.forward import Pair
from kedit_core.patches import SparseDelta
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.kn import attribute, coarse, neuron_layers, refined
from kedit_methods_locate.kn.columns import joined
from kedit_methods_locate.kn.selection import adapted_share

FACT = EditRequest(
    prompt="The capital of France is",
    subject="France",
    target_new="Port Lumen",
    ground_truth="Paris",
    rephrase_prompts=("France has as its capital the city of", "The capital city of France is"),
)


def editor_of(family: str = "gpt2", dtype: torch.dtype = torch.float32, **settings: Any) -> Editor:
    model, tokenizer = tiny(family, dtype=dtype)
    return Editor(model, tokenizer, "kn", {"steps": 3, "old_answer": "given", **settings})


def columns_of(patch: EditPatch) -> dict[tuple[str, int], Tensor]:
    """(place, neuron) -> what is added to its column."""
    found = {}
    for op in patch.operations:
        assert isinstance(op, SparseDelta)
        assert op.axis == "column"
        found.update({(op.place, int(i)): op.values[:, k] for k, i in enumerate(op.indices)})
    return found


def by_hand(editor: Editor, prompt: str, answer: str, threshold: float = 0.2) -> frozenset[tuple[int, int]]:
    return coarse(attribute(editor.forward, editor.tokens.pair(prompt, answer), steps=3).scores, "adaptive", threshold)


def named(editor: Editor, neurons: frozenset[tuple[int, int]]) -> set[tuple[str, int]]:
    layers = neuron_layers(editor.adapter)
    return {(layers[block].weight, index) for block, index in neurons}


def mean_row(editor: Editor, answer: str, matrix: Tensor) -> Tensor:
    ids = editor.tokens.pair(FACT.prompt, answer).target_ids
    return matrix.detach()[list(ids)].mean(0)


def codes(editor: Editor) -> dict[str, float | None]:
    context = editor.context()
    context.requests = tuple(editor.host.prepare_requests(context, [FACT]))
    editor.host.compute_patch(context, context.requests, context.hparams)
    return {warning.code: warning.number for warning in context.warnings}


# ------------------------------------------------------------------ 4
@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_only_the_selected_columns_change_and_by_the_rule(family: str) -> None:
    """Minus 2 times the old answer's mean embedding plus 2 times the new one's: bit for bit in float32."""
    editor = editor_of(family)
    patch = editor.compute(FACT)
    found = columns_of(patch)
    assert set(found) == named(editor, by_hand(editor, FACT.prompt, "Paris"))
    matrix = editor.adapter.embeddings.weight
    wanted = -2.0 * mean_row(editor, "Paris", matrix) + 2.0 * mean_row(editor, "Port Lumen", matrix)
    assert all(torch.equal(values, wanted) for values in found.values())
    before = {name: value.detach().clone() for name, value in editor.model.state_dict().items()}
    editor.apply(patch, way="merged")
    places = {place for place, _ in found}
    for name, value in editor.model.state_dict().items():
        expected = before[name]
        if name in places:
            inward = 0 if editor.adapter.layout(name) == "in_out" else 1
            mine = [index for place, index in found if place == name]
            expected = expected.clone()
            expected.transpose(0, inward)[mine] += wanted
        assert torch.equal(value, expected), name


def test_conv1d_and_linear_copies_are_the_same_function() -> None:
    """GPT-2 with its Conv1D projections as Linear ones: the same patch in [out, in] terms, the same answers."""
    from transformers.pytorch_utils import Conv1D

    editor = editor_of("gpt2", torch.float64)
    model, tokenizer = tiny("gpt2", dtype=torch.float64)
    for layer in range(len(model.transformer.h)):
        mlp = model.transformer.h[layer].mlp
        assert isinstance(mlp.c_proj, Conv1D)
        linear = torch.nn.Linear(*mlp.c_proj.weight.shape, dtype=torch.float64)
        linear.weight.data, linear.bias.data = mlp.c_proj.weight.data.T.contiguous(), mlp.c_proj.bias.data
        mlp.c_proj = linear
    other = Editor(model, tokenizer, "kn", {"steps": 3})
    patches = editor.compute(FACT), other.compute(FACT)
    first, second = (columns_of(patch) for patch in patches)
    assert first.keys() == second.keys()
    ids = torch.tensor([editor.tokens.prompt(FACT.prompt).ids])
    logits = []
    for each, patch in zip((editor, other), patches, strict=True):
        with torch.no_grad(), each.applied(patch):
            logits.append(each.model(ids).logits)
    torch.testing.assert_close(*logits, rtol=1e-10, atol=1e-10)


def test_the_norm_rule_scales_to_the_unedited_column() -> None:
    editor = editor_of(dtype=torch.float64, lambda_rule="norm", lambda_old=0.5, lambda_new=3.0)
    matrix = editor.adapter.embeddings.weight
    old, new = mean_row(editor, "Paris", matrix), mean_row(editor, "Port Lumen", matrix)

    def check(patch: EditPatch) -> None:
        for (place, index), values in columns_of(patch).items():
            size = base[place][index].norm()
            torch.testing.assert_close(values, -0.5 * size * old / old.norm() + 3.0 * size * new / new.norm())

    base = {layer.weight: editor.model.get_parameter(layer.weight).detach().clone() for layer in
            neuron_layers(editor.adapter)}  # fmt: skip
    first = editor.compute(FACT)
    check(first)
    editor.apply(first)
    check(editor.compute(FACT))


def test_parity_with_the_code_for_decoders() -> None:
    """-2 for one predicted token, -1 each for several, +1 for every token of the new answer."""
    for new in ("Rome", "Port Lumen"):
        editor = editor_of(dtype=torch.float64, lambda_rule="parity_causal")
        request = evolve(FACT, target_new=new)
        ids = editor.tokens.pair(FACT.prompt, new).target_ids
        row = list(editor.tokens.prompt(FACT.prompt).ids)
        with torch.no_grad():
            for _ in ids:
                row.append(int(editor.model(torch.tensor([row])).logits[0, -1].argmax()))
        matrix = editor.adapter.embeddings.weight.detach()
        greedy = matrix[row[-len(ids) :]]
        wanted = (-2 * greedy[0] if len(ids) == 1 else -greedy.sum(0)) + matrix[list(ids)].sum(0)
        for values in columns_of(editor.compute(request)).values():
            torch.testing.assert_close(values, wanted)
    assert len(ids) > 1


def test_rows_of_the_head() -> None:
    editor = editor_of("llama", embedding="lm_head", lambda_old=0, lambda_new=1)
    wanted = mean_row(editor, "Port Lumen", editor.adapter.lm_head.weight)
    assert not torch.equal(wanted, mean_row(editor, "Port Lumen", editor.adapter.embeddings.weight))
    for values in columns_of(editor.compute(FACT)).values():
        torch.testing.assert_close(values, wanted)


def test_signs_are_followed_on_request() -> None:
    plain, signed = (editor_of("llama", follow_sign=value) for value in (False, True))
    one, other = columns_of(plain.compute(FACT)), columns_of(signed.compute(FACT))
    activations = attribute(plain.forward, plain.tokens.pair(FACT.prompt, "Paris"), steps=1).activations
    blocks = {layer.weight: block for block, layer in enumerate(neuron_layers(plain.adapter))}
    signs = {key: float(activations[blocks[key[0]], key[1]].sign()) for key in one}
    assert set(signs.values()) == {1.0, -1.0}
    assert all(torch.equal(other[key], signs[key] * one[key]) for key in one)


def test_erasing_sets_columns_to_zero() -> None:
    editor = editor_of(change="erase")
    patch = editor.compute(FACT)
    editor.apply(patch, way="merged")
    for place, index in columns_of(patch):
        assert not bool(editor.model.get_parameter(place)[index].any())


# ------------------------------------------------------------------ whose neurons
def test_rephrased_prompts_refine() -> None:
    editor = editor_of(prompts="rephrase", refine_share=0.5, threshold=0.05)
    prompts = (FACT.prompt, *FACT.rephrase_prompts)
    each = [by_hand(editor, prompt, "Paris", 0.05) for prompt in prompts]
    wanted = refined(each, 0.5)
    assert each[0] != wanted
    assert wanted
    assert set(columns_of(editor.compute(FACT))) == named(editor, wanted)


def test_a_number_of_prompts_refines() -> None:
    """Neurons of one prompt of three do for a share of 0; the authors ask for three."""
    prompts = (FACT.prompt, *FACT.rephrase_prompts)
    probe = editor_of()
    each = [by_hand(probe, prompt, "Paris", 0.05) for prompt in prompts]
    for least in (1, 2, 3):
        editor = editor_of(prompts="rephrase", refine_share=0.0, refine_min_prompts=least, threshold=0.05)
        wanted = {n for n in frozenset().union(*each) if sum(n in found for found in each) >= least}
        assert set(columns_of(editor.compute(FACT))) == named(editor, frozenset(wanted))
        assert wanted


def test_an_inclusive_threshold_takes_the_one_at_it() -> None:
    plain = editor_of()
    scores = attribute(plain.forward, plain.tokens.pair(FACT.prompt, "Paris"), steps=3).scores
    level = float(scores.flatten().topk(3).values[-1])
    counts = [
        len(columns_of(editor_of(threshold_rule="absolute", threshold=level, threshold_inclusive=each).compute(FACT)))
        for each in (False, True)
    ]
    assert counts == [2, 3]


def test_the_share_of_prompts_is_adapted_to_the_relation() -> None:
    """One fact alone: the share moves until its own neurons are two to five, or six rounds are over."""
    sets = [by_hand(editor_of(), prompt, "Paris", 0.01) for prompt in (FACT.prompt, *FACT.rephrase_prompts)]
    assert len(refined(sets, 0.3)) > 5
    (edit,) = (
        editor_of(prompts="rephrase", refine_share=0.3, threshold=0.01, adapt_rounds=6)
        .compute(FACT)
        .state.config["edits"]
    )
    assert edit["share"] == adapted_share([sets], 0.3, 6) > 0.3
    assert edit["selected"] == len(refined(sets, edit["share"]))


def test_without_a_ground_truth_the_prediction_is_attributed() -> None:
    editor = editor_of(old_answer="given")
    patch = editor.compute(evolve(FACT, ground_truth=None))
    again = editor_of(old_answer="predicted").compute(FACT)
    assert {key: values.tolist() for key, values in columns_of(patch).items()} == {
        key: values.tolist() for key, values in columns_of(again).items()
    }
    assert set(columns_of(patch)) != set(columns_of(editor.compute(FACT)))


def test_neurons_of_negative_prompts_are_left_alone() -> None:
    """A negative prompt that is the prompt itself finds all of its own neurons; another one some or none."""
    plain = editor_of(old_answer="predicted")
    mine = set(columns_of(plain.compute(FACT)))
    ids = plain.tokens.pair(FACT.prompt, FACT.target_new).target_ids
    row = list(plain.tokens.prompt("France lies near the").ids)
    with torch.no_grad():
        for _ in ids:
            row.append(int(plain.model(torch.tensor([row])).logits[0, -1].argmax()))
    pair = Pair(tuple(row[: -len(ids)]), tuple(row[-len(ids) :]))
    theirs = named(plain, coarse(attribute(plain.forward, pair, steps=3).scores, "adaptive", 0.2))
    assert mine & theirs, "else the test says nothing"
    editor = editor_of(old_answer="predicted", negative_prompts=["{} lies near the"])
    assert set(columns_of(editor.compute(FACT))) == mine - theirs


def test_neurons_of_the_whole_relation_are_left_alone() -> None:
    """With a limit of one half: those of more than half of the facts, the edited one counted twice."""
    facts = [
        evolve(FACT, prompt=f"The capital of {land} is", subject=land, ground_truth=city, case_id=land)
        for land, city in (("France", "Paris"), ("Spain", "Madrid"), ("Japan", "Tokyo"), ("Kenya", "Nairobi"))
    ]
    editor = editor_of(max_frequency=0.5)
    own = [by_hand(editor, fact.prompt, fact.ground_truth or "") for fact in facts]
    patches = editor.edit(facts, scenario="single", evaluate=False).patches
    for number, patch in enumerate(patches):
        others = own[:number] + own[number + 1 :]
        wanted = {n for n in own[number] if sum(n in other for other in others) + 2 <= 0.5 * 5}
        assert set(columns_of(patch)) == named(editor, frozenset(wanted))
        assert len(wanted) < len(own[number])


def test_other_facts_are_attributed_on_the_unedited_model() -> None:
    """In a sequence the second fact's relatives are those of the base, whatever the first edit did."""
    facts = [
        evolve(FACT, prompt=f"The capital of {land} is", subject=land, ground_truth="Paris", case_id=land)
        for land in ("France", "Spain", "Japan", "Kenya")
    ]
    editor = editor_of(max_frequency=0.5)
    base = [by_hand(editor, fact.prompt, "Paris") for fact in facts]
    editor.edit(facts[:1], evaluate=False)
    before = Snapshot(editor.model)
    context = editor.context()
    context.requests = tuple(editor.host.prepare_requests(context, facts))
    second = editor.host.compute_patch(context, context.requests[1:2], context.hparams)
    own = by_hand(editor, facts[1].prompt, "Paris")
    wanted = {n for n in own if sum(n in base[i] for i in (0, 2, 3)) + 2 <= 0.5 * 5}
    assert set(columns_of(second)) == named(editor, frozenset(wanted))
    assert not before.differences(editor.model)


# ------------------------------------------------------------------ what is said, what is refused
def test_no_neuron_gives_an_empty_patch_and_a_warning() -> None:
    editor = editor_of(threshold_rule="absolute", threshold=1e6)
    before = Snapshot(editor.model)
    result = editor.edit(FACT, evaluate=False)
    assert result.patch.operations == ()
    (warning,) = [w for w in result.warnings if w.code == "no_neurons"]
    assert warning.number is not None
    assert 0 < warning.number < 1
    editor.restore()
    assert not before.differences(editor.model)
    assert EditPatch.from_bytes(result.patch.to_bytes()).id == result.patch.id


def test_an_answer_that_the_model_would_not_give_is_told() -> None:
    found = codes(editor_of(old_answer="given"))
    assert 0 < (found["old_answer_not_predicted"] or 0) < 0.5
    assert "old_answer_not_predicted" not in codes(editor_of(old_answer="predicted"))


def test_an_update_larger_than_its_weight_is_told() -> None:
    """By the block where it is the largest; scaling to the columns helps, as the remedy says."""
    for settings, large in (({"lambda_old": 0, "lambda_new": 1000.0}, True), ({"lambda_rule": "norm"}, False)):
        editor = editor_of(**settings)
        result = editor.edit(FACT, evaluate=False)
        (record,) = result.patch.state.config["edits"]
        sizes = [
            float(op.values.norm() / editor.stack.base(op.place).norm())  # type: ignore[union-attr]
            for op in result.patch.operations
        ]
        assert record["relative_weight_norm"] == pytest.approx(max(sizes), rel=1e-5)
        told = {warning.code: warning for warning in result.warnings}
        assert ("large_update" in told) is large
        if large:
            assert told["large_update"].number == record["relative_weight_norm"] > 1
            assert "lambda_rule=norm" in told["large_update"].remedy
    empty = editor_of(threshold_rule="absolute", threshold=1e6).compute(FACT)
    assert empty.state.config["edits"][0]["relative_weight_norm"] is None


def test_too_few_facts_for_a_frequency_are_told() -> None:
    assert codes(editor_of(max_frequency=0.1))["too_few_facts"] == 1


def test_what_cannot_be_edited_is_refused_before_any_work() -> None:
    editor = editor_of(negative_prompts=["{} is a"])
    calls: list[int] = []
    editor.adapter.block(0).register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(RequestError, match="no subject"):
        editor.edit(evolve(FACT, subject=None), evaluate=False)
    with pytest.raises(RequestError, match="tokens long, and the model has 128 positions") as caught:
        editor.edit(evolve(FACT, prompt="France " * 200), evaluate=False)
    assert len(str(caught.value)) < 250  # the prompt is named by its beginning
    assert not calls


def test_the_longer_answer_decides_whether_a_request_fits() -> None:
    editor = editor_of()
    room = 128 - max(_row(editor, answer) for answer in ("Paris", "Port Lumen"))
    answers = {"target_new": "Port Lumen", "ground_truth": "Paris"}
    assert _row(editor, "Port Lumen") != _row(editor, "Paris")
    for old, new in (("target_new", "ground_truth"), ("ground_truth", "target_new")):
        fact = evolve(FACT, rephrase_prompts=(), target_new=answers[old], ground_truth=answers[new])
        assert len(editor.compute(evolve(fact, prompt=f"{FACT.prompt}{'x' * room}")).requests) == 1  # type: ignore[arg-type]
        with pytest.raises(RequestError, match="129 tokens long"):
            editor.compute(evolve(fact, prompt=f"{FACT.prompt}{'x' * (room + 1)}"))


def _row(editor: Editor, answer: str) -> int:
    pair = editor.tokens.pair(FACT.prompt, answer)
    return len(pair.prompt_ids) + len(pair.target_ids) - 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_probabilities_that_are_not_finite_are_refused(family: str) -> None:
    """What a broken model answers says nothing of its neurons, and no patch of it would be one."""
    editor = editor_of(family)
    with torch.no_grad():
        editor.adapter.down_weight(1)[0, 0] = float("inf")
    before = Snapshot(editor.model)
    with pytest.raises(MethodError, match=r"are not finite; an earlier edit has broken the model.*lower lambda_new"):
        editor.compute(FACT)
    assert before.differences(editor.model) == []


def test_embeddings_of_another_width_are_refused() -> None:
    """OPT-350m's are narrower than its residual stream."""
    model, tokenizer = tiny("opt", word_embed_proj_dim=16)
    with pytest.raises(UnsupportedModelError, match="residual stream"):
        Editor(model, tokenizer, "kn").edit(FACT, evaluate=False)


# ------------------------------------------------------------------ 8
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_it_comes_off_bit_for_bit_and_goes_on_once(family: str) -> None:
    editor = editor_of(family)
    before = Snapshot(editor.model)
    patch = editor.compute(FACT)
    editor.apply(patch)
    with pytest.raises(StackOrderError):
        editor.apply(patch)
    editor.remove(patch)
    assert not before.differences(editor.model)


def test_shared_neurons_of_a_sequence_come_off_in_any_order() -> None:
    """The same columns written twice: taking off the first leaves exactly the second."""
    editor = editor_of()
    first = editor.compute(FACT)
    second = editor.compute(evolve(FACT, target_new="Rome"))
    assert set(columns_of(first)) & set(columns_of(second))
    alone = editor_of()
    alone.apply(second)
    wanted = Snapshot(alone.model).weights
    editor.apply(first)
    editor.apply(second)
    editor.remove(first)
    assert Snapshot(editor.model).weights == wanted


def test_requests_computed_together_are_one_operation_a_block() -> None:
    """Overlapping columns add up."""
    values = torch.arange(6.0).view(2, 3)
    one = SparseDelta("w", "column", torch.tensor([1, 4, 5]), values)
    other = SparseDelta("w", "column", torch.tensor([0, 4]), torch.tensor([[10.0, 20], [30, 40]]))
    third = SparseDelta("v", "column", torch.tensor([2]), torch.ones(2, 1))
    both = joined([{0: one}, {0: other, 3: third}])
    assert [op.place for op in both] == ["w", "v"]
    wanted = one.delta((2, 8), torch.float32) + other.delta((2, 8), torch.float32)
    assert torch.equal(both[0].delta((2, 8), torch.float32), wanted)


# ------------------------------------------------------------------ what it tells
def test_the_plan_runs_little_and_changes_nothing() -> None:
    editor = editor_of(steps=20)
    before = Snapshot(editor.model)
    plan = editor.plan([FACT, evolve(FACT, case_id="b")])
    assert plan["places"] == ["(chosen by attribution)"]
    tokens = len(editor.tokens.pair(FACT.prompt, "Paris").target_ids)
    rows = 2 * tokens * editor.adapter.num_layers * 20
    assert plan["notes"][0].startswith(f"{rows} rows")
    assert plan["seconds"] > 0
    assert plan["memory_bytes"] > 0
    assert not before.differences(editor.model)


def test_the_patch_records_its_neurons() -> None:
    editor = editor_of()
    patch = editor.compute(FACT)
    (edit,) = patch.state.config["edits"]
    table = attribute(editor.forward, editor.tokens.pair(FACT.prompt, "Paris"), steps=3)
    assert edit["old_probability"] == pytest.approx(table.probability)
    assert edit["found"] == [edit["selected"]] == [len(columns_of(patch))]
    scores = [score for _, _, score in edit["neurons"]]
    assert scores == sorted(scores, reverse=True)
    for block, index, score in edit["neurons"]:
        assert score == pytest.approx(float(table.scores[block, index]))
