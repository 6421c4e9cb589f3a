"""The memory of facts: which is chosen, what is kept, what is dropped, and what a patch file must hold."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ike_tools import FACTS, demonstrations, editor_on, read_before
from warm_processes import run_warm

from kedit_core import EditPatch, EditRequest
from kedit_core.errors import HyperParamsError, InputError, PatchFormatError, RequirementError, UnknownNameError
from kedit_core.patches import LowRankDelta, RouterOperation
from kedit_core.requests import Probe, dump_requests
from kedit_factworld.plugin import edit_cases
from kedit_methods_memory.ike import memory_of
from kedit_methods_memory.ike.corpus import Record
from kedit_methods_memory.ike.texts import cleaned, most_tokens

QUERIES = [fact.prompt for fact in FACTS] + ["Alice lives in Paris and works in", "Nobody knows"]


def test_each_prompt_gets_the_fact_that_is_nearest() -> None:
    editor = editor_on(method="ike_context")
    editor.edit(list(FACTS), evaluate=False)
    for query, fact in zip(QUERIES, (*FACTS, FACTS[1]), strict=False):
        assert read_before(editor, query) == f"New Fact: {fact.prompt} {fact.target_new}\nPrompt: "


def test_the_threshold_is_a_cosine_and_counts_as_reached_when_equal() -> None:
    query = "Alice lives in Paris and works in"
    encoder = editor_on(method="ike_context", tau=0.0)
    patch = encoder.edit(list(FACTS), evaluate=False).patch
    memory = memory_of(patch)
    from kedit_methods_memory.ngrams import NGramEncoder

    score = float((NGramEncoder().encode([query]) * memory.embeddings).sum(1).max())
    for tau, passes in ((score, False), (score + 1e-4, True)):
        editor = editor_on(method="ike_context", tau=tau)
        editor.edit(list(FACTS), evaluate=False)
        assert (read_before(editor, query) == "") == passes


def test_of_one_prompt_with_two_answers_the_newest_counts() -> None:
    editor = editor_on(k=4)
    editor.edit(FACTS[0], evaluate=False)
    editor.edit(evolve(FACTS[0], target_new="Oslo"), evaluate=False)
    assert read_before(editor, FACTS[0].prompt).endswith("New Fact: The capital of France is Oslo\nPrompt: ")
    assert [fact["target_new"] for fact in editor.stack.patches[0].patch.requests] == ["Rome", "Oslo"]


def test_the_newest_counts_also_among_many_facts_and_the_old_one_comes_back() -> None:
    """Matrix products give equal vectors unequal scores, by where they stand."""
    editor = editor_on(method="ike_context")
    cases = edit_cases()
    for case in cases[:4]:
        editor.edit(evolve(case, target_new="Rome", case_id="old"), evaluate=False)
        editor.edit(cases[30:47], evaluate=False)
        new = evolve(case, prompt=f" {case.prompt} ", target_new="Oslo", case_id="new")
        editor.edit(new, evaluate=False)
        asked = [case.prompt, *case.rephrase_prompts]
        together = [route.context for route in editor.stack.route(asked)]
        assert together == [read_before(editor, prompt) for prompt in asked]
        assert not any("Rome\n" in context for context in together)
        assert together[0].startswith(f"New Fact: {new.prompt.rstrip()} Oslo\n")
        patch = editor.stack.patches[0].patch
        assert len(memory_of(patch).facts) == 19 and len(memory_of(patch).live) == 18
        editor.restore()
        with editor.applied(editor.drop(patch, "new")):
            assert read_before(editor, case.prompt).startswith(f"New Fact: {case.prompt} Rome\n")


def test_a_score_is_that_of_its_query_and_fact_alone() -> None:
    """To the last bit, whatever else is asked or known: a threshold stands between a score and the next number."""
    generator = torch.Generator().manual_seed(0)
    some = memory_of(editor_on(method="ike_context").edit(FACTS[0], evaluate=False).patch)
    for width, count in ((24, 3), (384, 20), (384, 90)):
        facts = tuple(evolve(some.facts[0], prompt=f"Fact {i}") for i in range(count))
        vectors = torch.nn.functional.normalize(torch.randn(count, width, generator=generator))
        queries = torch.nn.functional.normalize(vectors[:7] + 0.02 * torch.randn(7, width, generator=generator)[:count])
        memory = evolve(some, facts=facts, embeddings=vectors)
        for row, query in enumerate(queries):
            score = (query * vectors[row]).sum()
            for tau, wanted in ((score, row), (torch.nextafter(score, torch.tensor(2.0)), None)):
                strict = evolve(memory, tau=float(tau))
                assert strict.best(queries)[row] == wanted == strict.best(query[None])[0]


def test_no_edited_fact_is_shown_for_what_is_edited_with_it_or_after_it() -> None:
    """With demonstrations from among the edited facts: a call's own order does not count, the order of calls does."""
    records, first = demonstrations(12), FACTS[0]

    def contexts(*calls: Sequence[EditRequest], scenario: str = "batch") -> str:
        editor = editor_on(k=4, demos=records)
        for call in calls:
            editor.edit(list(call), scenario=scenario, evaluate=False)
        assert len(editor.stack.patches) == 1
        return read_before(editor, first.prompt)

    alone = contexts([first])
    shown = next(each for each in records if f"New Fact: {each.prompt} " in alone)
    fact = f"New Fact: {shown.prompt} "
    without = contexts([first, shown])
    assert fact not in without and without != alone
    # one call, in any order, at once or one after another; and in the memory before
    assert contexts([shown, first]) == without
    assert contexts([first, shown], scenario="sequential") == contexts([shown, first], scenario="sequential") == without
    assert contexts([shown], [first]) == without
    # the same case in other words is no demonstration either
    other = evolve(shown, prompt="Where they rule is")
    assert contexts([other], [first]) == contexts([other, first]) == without
    # what a fact is shown with was chosen when it was edited
    assert contexts([first], [shown]) == alone


def test_a_prompt_counts_the_bytes_of_the_form_that_tokenizers_read() -> None:
    query = "\ufdfa" * 4  # one sign that NFKC writes with 18
    models = pytest.importorskip("tokenizers")
    reader = models.Tokenizer(models.models.BPE({each: i for i, each in enumerate(bytes_of_tokenizers())}, []))
    reader.normalizer, reader.pre_tokenizer = models.normalizers.NFKC(), models.pre_tokenizers.ByteLevel(False)
    assert len(query.encode()) < len(reader.encode(query).ids) <= most_tokens(query)
    assert most_tokens("e\u0301") == 3 and most_tokens("plain") == 5
    editor = editor_on("llama", window=600, answer_tokens=10)
    memory = memory_of(editor.edit(FACTS[0], evaluate=False).patch)
    same = "x" * len(reader.encode(query).ids)
    assert memory.used(memory.facts[0], query) == memory.used(memory.facts[0], same)
    assert memory.used(memory.facts[0], query) != memory.used(memory.facts[0], "x" * len(query.encode()))


def bytes_of_tokenizers() -> list[str]:
    """The signs that byte-level tokenizers write bytes with."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


def test_dropping_a_fact_leaves_the_others_as_they_were_and_nothing_of_it() -> None:
    editor = editor_on(k=4)
    patch = editor.edit(list(FACTS), evaluate=False).patch
    before = {fact.prompt: read_before(editor, fact.prompt) for fact in FACTS}
    editor.restore()
    rest = editor.drop(patch, "b")
    with editor.applied(rest):
        assert read_before(editor, FACTS[0].prompt) == before[FACTS[0].prompt]
        assert read_before(editor, FACTS[2].prompt) == before[FACTS[2].prompt]
        assert "Alice" not in read_before(editor, FACTS[1].prompt)
    assert "Alice" not in json.dumps(rest.manifest())
    # as if it had never been there
    alone = editor_on(k=4)
    others = alone.edit([FACTS[0], FACTS[2]], evaluate=False).patch
    assert memory_of(rest).records == memory_of(others).records
    assert torch.equal(memory_of(rest).embeddings, memory_of(others).embeddings)


def test_as_easyedit_ranks_texts_of_any_type_nearest_first_without_the_copy() -> None:
    records = demonstrations(12)
    editor = editor_on(k=16, mode="easyedit", demos=records)
    patch = editor.edit(FACTS[0], evaluate=False).patch
    memory = memory_of(patch)
    from kedit_methods_memory.ngrams import NGramEncoder

    encoder, scored = NGramEncoder(), []
    wanted = encoder.encode(["New Fact: The capital of France is Rome\nPrompt: The capital of France is\n\n"])[0]
    for i, request in enumerate(records):
        record = Record.of(request, ("neighborhood",))
        for kind in (0, 1, 2):
            for variant in range(record.variants(kind)):
                text = record.text(kind, variant)
                scored.append((-round(float(encoder.encode([text])[0] @ wanted), 6), i, kind, variant, text))
    nearest = sorted(scored)[:16]
    assert [(each.record, each.kind, each.variant) for each in memory.facts[0].drawn] == [each[1:4] for each in nearest]
    wanted_text = "".join(each[4] for each in nearest) + "New Fact: The capital of France is Rome\nPrompt: "
    assert read_before(editor, "Paris?") == wanted_text
    assert len({each[1] for each in nearest}) < 16  # one record may come more than once


def test_the_control_has_the_demonstrations_and_not_the_fact() -> None:
    whole, control = editor_on(k=8), editor_on(k=8, mode="format")
    for editor in (whole, control):
        editor.edit(FACTS[0], evaluate=False)
    text = read_before(control, "x")
    assert "Rome\nPrompt: The capital of France" not in text and text.endswith("\n\nPrompt: ")
    shown = text.removesuffix("Prompt: ")
    assert shown and read_before(whole, "x").startswith(shown)


# ------------------------------------------------------------------ the patch file
@pytest.mark.slow
def test_another_process_builds_the_very_same_prompts(tmp_path: Path) -> None:
    editor = editor_on("llama", k=8, window=600)
    editor.edit(list(FACTS), evaluate=False).patch.save(tmp_path / "patch.safetensors")
    code = (
        "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from ike_tools import editor_on, read_before;"
        "from kedit_core import EditPatch; e = editor_on('llama', method='ike_context');"
        "e.apply(EditPatch.load(sys.argv[2]));"
        "print(json.dumps([read_before(e, q) for q in json.loads(sys.argv[3])]))"
    )
    arguments = [json.dumps(sys.path), str(tmp_path / "patch.safetensors"), json.dumps(QUERIES)]
    done = run_warm(code, *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [read_before(editor, query) for query in QUERIES]


def test_by_hash_the_patch_is_small_and_needs_the_very_file(tmp_path: Path) -> None:
    file, other_file = tmp_path / "demos.jsonl", tmp_path / "other.jsonl"
    dump_requests(demonstrations(20), file)
    dump_requests(demonstrations(19), other_file)
    inline = editor_on(k=8, resources={"demonstrations": file})
    hashed = editor_on(k=8, resources={"demonstrations": file}, store_demonstrations="by_hash")
    for editor in (inline, hashed):
        editor.edit(list(FACTS), evaluate=False)
    patch = hashed.stack.patches[0].patch
    assert [read_before(hashed, q) for q in QUERIES] == [read_before(inline, q) for q in QUERIES]
    assert patch.size < inline.stack.patches[0].patch.size - 1500
    assert "Arvania" not in json.dumps(patch.manifest())
    assert {need.role: need.sha256 for need in patch.requires} == {
        "demonstrations": hashlib.sha256(file.read_bytes()).hexdigest()
    }
    elsewhere = editor_on()
    with pytest.raises(RequirementError, match="--with demonstrations=PATH"):
        elsewhere.apply(patch)
    with pytest.raises(RequirementError, match="hashes to"):
        elsewhere.apply(patch, resources={"demonstrations": other_file})
    elsewhere.apply(patch, resources={"demonstrations": file})
    assert [read_before(elsewhere, q) for q in QUERIES] == [read_before(inline, q) for q in QUERIES]


def damaged(patch: EditPatch, **config: object) -> EditPatch:
    (operation,) = patch.operations
    broken = RouterOperation(operation.kind, 1, {**operation.config, **config}, operation.tensors)
    return evolve(patch, operations=[broken])


def test_a_patch_that_does_not_hold_what_it_names_is_refused_when_applied() -> None:
    editor = editor_on(k=4)
    patch = editor.edit(list(FACTS), evaluate=False).patch
    editor.restore()
    for broken in (
        damaged(patch, records={}),
        damaged(patch, facts=[]),
        damaged(patch, facts=[{"id": "1"}] * 3),
        damaged(patch, template_version=2),
        damaged(patch, demonstrations={"stored": "by_hash"}),
    ):
        with pytest.raises(PatchFormatError):
            editor.apply(broken)
        assert not editor.stack.patches
    tensors = {**patch.operations[0].tensors}
    tensors.pop("memory.tokens")
    with pytest.raises(PatchFormatError, match=r"ike\.context"):
        editor.apply(evolve(patch, operations=[RouterOperation("ike.context", 1, patch.operations[0].config, tensors)]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("id", "prompt", "target") for value in (None, 3, [])],
        ("subject", 3),
        ("case_id", []),
        *[("tau", value) for value in ("x", True)],
        *[("window", value) for value in ("x", 3.5, [])],
        *[("answer_tokens", value) for value in (None, "x")],
        *[("mode", value) for value in (None, "other", [])],
        *[("encoder", value) for value in (None, "x", {}, {"id": 0}, {"id": None}, {"id": "a", "more": 1})],
        *[("demonstrations", value) for value in ("x", 3)],
        *[("records", value) for value in (None, "x")],
        ("settings", 3),
    ],
)
def test_values_of_another_type_are_refused_when_applied(name: str, value: object) -> None:
    editor = editor_on(method="ike_context")
    patch = editor.edit(list(FACTS), evaluate=False).patch
    editor.restore()
    facts = [dict(fact) for fact in patch.operations[0].config["facts"]]
    broken = damaged(patch, facts=[{**facts[0], name: value}, *facts[1:]] if name in facts[0] else facts)
    broken = broken if name in facts[0] else damaged(patch, **{name: value})
    with pytest.raises(PatchFormatError, match="not made by kedit"):
        editor.apply(broken)
    assert not editor.stack.patches
    with pytest.raises(PatchFormatError, match="not made by kedit"):
        editor.drop(broken, "#1")


def test_vectors_that_are_none_or_of_another_width_are_refused() -> None:
    editor = editor_on(method="ike_context")
    patch = editor.edit(list(FACTS), evaluate=False).patch
    editor.restore()
    (operation,) = patch.operations
    vectors = operation.tensors["memory.embeddings"]

    def made(**tensors: torch.Tensor) -> EditPatch:
        held = {**operation.tensors, **{f"memory.{name}": each for name, each in tensors.items()}}
        return evolve(patch, operations=[RouterOperation(operation.kind, 1, operation.config, held)])

    for broken in (
        made(embeddings=vectors[:, 0]),
        made(embeddings=vectors.long()),
        made(tokens=operation.tensors["memory.tokens"].float()),
    ):
        with pytest.raises(PatchFormatError):
            editor.apply(broken)
    editor.apply(made(embeddings=vectors[:, 1:].contiguous()))
    with pytest.raises(PatchFormatError, match="its encoder makes"):
        read_before(editor, FACTS[0].prompt)


@pytest.mark.parametrize(("method", "told"), [("ike", True), ("ike_context", False)])
def test_the_plan_tells_of_demonstrations_where_there_are_some(method: str, told: bool) -> None:
    notes = editor_on(method=method).plan(list(FACTS))["notes"]
    assert any("demonstrations before each prompt" in note for note in notes) == told


@pytest.mark.slow
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_any_history_beside_weight_patches_is_exact(steps: list[int]) -> None:
    editor = editor_on(method="ike_context")
    base = editor.stack.weights_digest()
    place = editor.adapter.mlp_out_weight(1)
    out, inner = editor.adapter.down_weight(1).shape
    facts = [editor.compute(fact) for fact in FACTS[:2]]
    weights = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        delta = LowRankDelta(
            place, torch.randn(out, 1, generator=generator), torch.randn(1, inner, generator=generator)
        )
        weights.append(evolve(facts[0], operations=[delta], base=editor.stack.base_of([delta]), requests=()))
    pool, on = [facts[0], weights[0], facts[1], weights[1]], []
    for step in steps:
        patch = pool[step]
        if patch in on:
            editor.remove(patch)
            on.remove(patch)
        else:
            editor.apply(patch)
            on.append(patch)
        heads = [memory_of(each).facts[0] for each in on if each in facts]
        assert read_before(editor, "Hello") == "".join(f"New Fact: {h.prompt} {h.target}\nPrompt: " for h in heads)
    fresh = editor_on(method="ike_context")
    for other in on:
        fresh.apply(other)
    assert fresh.stack.weights_digest() == editor.stack.weights_digest()
    editor.restore()
    assert editor.stack.weights_digest() == base and read_before(editor, "Hello") == ""


# ------------------------------------------------------------------ what is given
def test_without_any_demonstrations_it_says_what_to_give() -> None:
    editor = editor_on()
    editor.options.clear()
    with pytest.raises(RequirementError, match="--with demonstrations=FILE"):
        editor.edit(FACTS[0], evaluate=False)
    editor.options["demonstrations"] = "no-such-dataset"
    with pytest.raises(UnknownNameError):
        editor.edit(FACTS[0], evaluate=False)
    editor.options["demonstrations"] = 7
    with pytest.raises(InputError, match="int"):
        editor.edit(FACTS[0], evaluate=False)
    by_hash = editor_on(store_demonstrations="by_hash")
    with pytest.raises(InputError, match="by the hash of their file"):
        by_hash.edit(FACTS[0], evaluate=False)


def test_records_that_are_edited_or_lack_what_types_need_cannot_serve() -> None:
    bare = [EditRequest(prompt=f"Fact {i} is", target_new="so", case_id=f"bare-{i}") for i in range(3)]
    with pytest.raises(InputError, match="no rephrase or no locality probe"):
        editor_on(demos=bare).edit(FACTS[0], evaluate=False)
    with pytest.raises(InputError, match="2 are edited themselves"):
        editor_on(demos=FACTS[:2]).edit(list(FACTS), evaluate=False)
    copies = editor_on(demos=bare, ratio=[1, 0, 0]).edit(FACTS[0], evaluate=False)
    assert {each.kind for each in memory_of(copies.patch).facts[0].drawn} == {0}
    assert [warning.code for warning in copies.warnings] == ["few_demonstrations"]
    strings = editor_on(demos=bare, mode="easyedit", k=2).edit(FACTS[0], evaluate=False)
    assert len(memory_of(strings.patch).facts[0].drawn) == 2


def test_other_demonstrations_than_the_facts_before_had_are_refused() -> None:
    editor = editor_on(k=4)
    editor.edit(FACTS[0], evaluate=False)
    editor.options["demonstrations"] = demonstrations(12)
    with pytest.raises(InputError, match="not those that the facts before were given"):
        editor.edit(FACTS[1], evaluate=False)
    assert len(editor.stack.patches) == 1


def test_a_fact_too_long_for_the_window_is_refused_before_any_work() -> None:
    editor = editor_on(method="ike_context", window=60)
    with pytest.raises(InputError, match="shorten the fact"):
        editor.edit(evolve(FACTS[0], prompt="Once " * 60 + FACTS[0].prompt), evaluate=False)
    assert not editor.stack.patches


@pytest.mark.parametrize(
    "wrong", [{"k": 0}, {"ratio": [0, 0, 0]}, {"ratio": [1, -1, 1]}, {"mode": "other"}, {"tau": -2}, {"window": 1}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(HyperParamsError):
        editor_on(**wrong)  # type: ignore[arg-type]


def test_neighbours_come_from_the_sub_keys_named_or_else_from_all() -> None:
    request = demonstrations(1)[0]
    assert Record.of(request, ("neighborhood",)).neighbours == (("The town of 0 people is", "Brink"),)
    assert len(Record.of(request, ("absent",)).neighbours) == 2
    blind = evolve(request, locality={"neighborhood": (Probe(prompt="no answer known"),)})
    assert Record.of(blind, ("neighborhood",)).neighbours == ()


@pytest.mark.parametrize(
    ("paraphrase", "subject", "kept"),
    [
        ("He died in 1946. Danielle Darrieux, a native", "Danielle Darrieux", "Danielle Darrieux, a native"),
        ("Shayna does this\nThe mother tongue of Eva is", "Eva", "The mother tongue of Eva is"),
        ("Category:Living people The job of Eva is", "Eva", "Eva is"),
        ("A. Category: x. The job of Eva is", "Eva", "The job of Eva is"),
        ("Eva works. As what does Eva work", "Eva", "Eva works. As what does Eva work"),
        ("no subject here. Really", "Eva", "no subject here. Really"),
        ("no subject. given", None, "no subject. given"),
    ],
)
def test_counterfact_paraphrases_are_cleaned_as_the_original_does(
    paraphrase: str, subject: str | None, kept: str
) -> None:
    assert cleaned(paraphrase, subject) == kept


def test_cleaning_is_asked_for_by_a_setting() -> None:
    records = [
        evolve(each, rephrase_prompts=(f"Nothing to do with it. The seat of {each.subject} is",))
        for each in demonstrations(12)
    ]
    for clean in (False, True):
        editor = editor_on(demos=records, k=8, clean_paraphrases=clean)
        editor.edit(FACTS[0], evaluate=False)
        assert ("Nothing to do" in read_before(editor, "x")) != clean


def test_a_bare_call_does_not_see_the_edit_and_routed_text_does() -> None:
    editor = editor_on("gpt2", k=4)
    query = QUERIES[0]
    inputs = editor.tokenizer(query, return_tensors="pt")["input_ids"]
    settings_ = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        before = editor.model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings_)
        editor.edit(list(FACTS), evaluate=False)
        bare = editor.model.generate(inputs, attention_mask=torch.ones_like(inputs), **settings_)
        (route,) = editor.stack.route([query])
        whole = editor.tokenizer(route.context + query, return_tensors="pt")["input_ids"]
        routed = editor.model.generate(whole, attention_mask=torch.ones_like(whole), **settings_)
    assert torch.equal(before, bare)
    assert editor.tokenizer.decode(routed[0, whole.shape[1] :]) == editor.generate(query, max_new_tokens=6)
