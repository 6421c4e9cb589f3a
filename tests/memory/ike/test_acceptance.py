"""The acceptance checks of IKE's sheet, each a test that names it, and the plain prompt written a second time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from ike_tools import FACTS, demonstrations, editor_on, read_before

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.evaluation import Answers
from kedit_core.testing.snapshot import Snapshot
from kedit_methods_memory.ike import Memory, memory_of
from kedit_methods_memory.ngrams import NGramEncoder

QUERIES = ("The capital of France is", "France is ruled from", "The river Sorrel flows through")


def plain_prompt(
    request: EditRequest, query: str, records: Sequence[EditRequest], k: int, seed: int, counts: tuple[int, int, int]
) -> str:
    """The sheet's algorithm by the letter: sentences in a list, one dot product after another."""
    encoder = NGramEncoder()

    def dot(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one * other).sum())

    sentences: list[tuple[int, str]] = []
    for i, r in enumerate(records):
        fact = f"New Fact: {r.prompt} {r.target_new}\nPrompt: "
        sentences.append((i, f"{fact}{r.prompt} {r.target_new}"))
        sentences += [(i, f"{fact}{p} {r.target_new}") for p in r.rephrase_prompts]
        sentences += [(i, f"{fact}{n.prompt} {n.answers[0]}") for n in r.locality["neighborhood"]]
    wanted = encoder.encode([f"New Fact: {request.prompt} {request.target_new}\nPrompt: {request.prompt}"])[0]
    scored = [(dot(encoder.encode([text])[0], wanted), i) for i, text in sentences]
    ranked: list[int] = []
    for _, i in sorted(scored, key=lambda each: (-round(each[0], 5), each[1])):
        if i not in ranked:
            ranked.append(i)
    rng = random.Random(seed ^ int(request.id, 16))
    kinds = [0] * counts[0] + [1] * counts[1] + [2] * counts[2]
    rng.shuffle(kinds)
    shown = []
    for i, kind in zip(ranked[:k], kinds, strict=True):
        r = records[i]
        choices = [
            [(r.prompt, r.target_new)],
            [(p, r.target_new) for p in r.rephrase_prompts],
            [(n.prompt, n.answers[0]) for n in r.locality["neighborhood"]],
        ][kind]
        prompt, answer = choices[rng.randrange(len(choices))]
        shown.append(f"New Fact: {r.prompt} {r.target_new}\nPrompt: {prompt} {answer}\n\n")
    own = f"New Fact: {request.prompt} {request.target_new}\nPrompt: "
    return "".join(reversed(shown)) + f"{own}{request.prompt} {request.target_new}\n\n" + own + query


@pytest.mark.parametrize(("k", "counts"), [(32, (4, 12, 16)), (16, (2, 6, 8)), (5, (1, 2, 2))])
def test_the_prompt_is_the_one_written_by_the_letter(k: int, counts: tuple[int, int, int]) -> None:
    records = demonstrations(40)
    editor = editor_on("llama", k=k, seed=11)
    for request in FACTS:
        editor.edit(request, evaluate=False)
        for query in QUERIES:
            found = read_before(editor, query) + query
            assert found == plain_prompt(editor.prepare(request)[0], query, records, k, 11, counts)
        editor.restore()


def memory_after(editor: Editor, requests: Sequence[EditRequest]) -> Memory:
    return memory_of(editor.edit(list(requests), evaluate=False).patch)


def test_check_1_types_in_ratio_of_distinct_records_none_of_them_edited() -> None:
    records = demonstrations(60)
    edited = [records[7], records[21], *FACTS]
    memory = memory_after(editor_on(demos=records), edited)
    for fact in memory.facts:
        assert Counter(each.kind for each in fact.drawn) == {0: 4, 1: 12, 2: 16}
        assert len({each.record for each in fact.drawn}) == 32
        assert not {7, 21} & {each.record for each in fact.drawn}


def test_check_1_also_when_each_case_is_edited_alone() -> None:
    records = demonstrations(40)
    result = editor_on(demos=records, k=8).edit(records[:20], scenario="single", evaluate=False)
    shown = {each.record for patch in result.patches for fact in memory_of(patch).facts for each in fact.drawn}
    assert shown and shown <= set(range(20, 40))


def test_check_2_same_seed_same_bytes_and_no_order_changes_a_prompt() -> None:
    def contexts(order: Sequence[EditRequest], scenario: str, seed: int = 3) -> dict[str, str]:
        editor = editor_on(k=8, seed=seed)
        editor.edit(list(order), scenario=scenario, evaluate=False)
        return {request.prompt: read_before(editor, request.prompt) for request in order}

    first = contexts(FACTS, "batch")
    assert first == contexts(FACTS, "batch") == contexts(FACTS[::-1], "batch") == contexts(FACTS[::-1], "sequential")
    assert first != contexts(FACTS, "batch", seed=4)


def test_adding_a_fact_leaves_the_prompts_of_the_others() -> None:
    editor = editor_on(k=8)
    editor.edit(FACTS[0], evaluate=False)
    before = read_before(editor, FACTS[0].prompt)
    editor.edit(list(FACTS[1:]), evaluate=False)
    assert len(editor.stack.patches) == 1
    assert read_before(editor, FACTS[0].prompt) == before != read_before(editor, FACTS[1].prompt)


def test_check_3_the_copy_comes_last_and_the_nearest_record_before_it() -> None:
    records = demonstrations(40)
    editor = editor_on(demos=records)
    memory = memory_after(editor, FACTS[:1])
    blocks = read_before(editor, QUERIES[1]).split("\n\n")
    fact = "New Fact: The capital of France is Rome\nPrompt: "
    assert blocks[-1] == fact
    assert blocks[-2] == f"{fact}The capital of France is Rome"
    nearest = records[memory.facts[0].drawn[0].record]
    assert blocks[-3].startswith(f"New Fact: {nearest.prompt} {nearest.target_new}\nPrompt: ")
    assert len(blocks) == 34


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_check_4_weights_are_untouched_and_removal_is_exact(family: str) -> None:
    editor = editor_on(family, k=4)
    before, pairs = Snapshot(editor.model), [(query, "Rome") for query in QUERIES]
    digest, clean = editor.stack.weights_digest(), answers(editor).target_logprobs(pairs)
    patch = editor.edit(list(FACTS), evaluate=False).patch
    assert editor.stack.weights_digest() == digest
    edited = answers(editor).target_logprobs(pairs)
    assert not any(torch.equal(one, other) for one, other in zip(edited, clean, strict=True))
    editor.remove(patch)
    assert not before.differences(editor.model)
    assert all(map(torch.equal, answers(editor).target_logprobs(pairs), clean))


def test_check_5_without_demonstrations_it_is_the_fact_alone() -> None:
    empty, ice, plain = editor_on(demos=[]), editor_on(mode="ice"), editor_on(method="ike_context")
    for editor in (empty, ice, plain):
        result = editor.edit(list(FACTS), evaluate=False)
        told = [warning.code for warning in result.warnings]
        assert told == (["no_demonstrations"] if editor is empty else [])
    found = [[read_before(editor, query) for query in QUERIES] for editor in (empty, ice, plain)]
    assert found[0] == found[1] == found[2]
    assert found[0][0] == "New Fact: The capital of France is Rome\nPrompt: "


def test_check_6_a_threshold_nothing_reaches_lets_every_prompt_through() -> None:
    editor = editor_on(tau=1.01, k=4)
    pairs = [(query, "Rome") for query in QUERIES]
    clean, said = answers(editor).target_logprobs(pairs), editor.generate(QUERIES, max_new_tokens=6)
    editor.edit(list(FACTS), evaluate=False)
    assert [read_before(editor, query) for query in QUERIES] == [""] * 3
    assert all(map(torch.equal, answers(editor).target_logprobs(pairs), clean))
    assert editor.generate(QUERIES, max_new_tokens=6) == said


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_check_7_the_answer_is_scored_in_the_whole_string(family: str) -> None:
    editor = editor_on(family, k=4)
    editor.edit(FACTS[0], evaluate=False)
    for answer in ("Rome", "Port Lumen"):
        (found,) = answers(editor).target_logprobs([(QUERIES[0], answer)])
        text = read_before(editor, QUERIES[0]) + QUERIES[0]
        encoded = editor.tokenizer(f"{text} {answer}", return_tensors="pt", return_offsets_mapping=True)
        span = [i for i, (_, end) in enumerate(encoded["offset_mapping"][0].tolist()) if end > len(text)]
        with torch.no_grad():
            logits = editor.model(input_ids=encoded["input_ids"]).logits[0].double().log_softmax(-1)
        of_answer = [float(logits[i - 1, encoded["input_ids"][0, i]]) for i in span]
        m, ppl = len(span), torch.tensor(of_answer).mean().neg().exp()
        assert len(found) == m
        torch.testing.assert_close(found.sum(), -m * ppl.log(), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("window", [1500, 700, 400, 200, 150, 120, 90])
def test_check_8_over_long_prompts_drop_the_least_similar_demonstrations(window: int) -> None:
    whole = editor_on("llama", seed=5)
    whole.edit(FACTS[0], evaluate=False)
    editor = editor_on("llama", seed=5, window=window, answer_tokens=10)
    result = editor.edit(FACTS[0], evaluate=False)
    query = "France is a country whose capital is called"
    everything, kept = read_before(whole, query), read_before(editor, query)
    assert everything.endswith(kept) and kept != everything
    assert kept.endswith("New Fact: The capital of France is Rome\nPrompt: ")
    assert kept.startswith("New Fact: ")
    assert len(editor.tokens.prompt(kept + query).ids) + 10 <= window
    (used,) = result.patch.operations[0].tensors["memory.k_used"].tolist()
    own = read_before(editor, FACTS[0].prompt)
    assert own.count("New Fact: ") == used + (2 if "Rome\n\nNew Fact: The capital of France is Rome\n" in own else 1)
    assert [warning.code for warning in result.warnings] == (["demonstrations_cut"] if used < 32 else [])
    # nothing is left out that there was room for: one more would go beyond, counting the query by its bytes
    dropped = everything.removesuffix(kept).split("\n\n")[-2] + "\n\n"
    longer = len(editor.tokens.prompt(dropped + kept).ids) + len(query.encode()) + 10
    assert longer > window - 6


def test_the_model_answers_a_prompt_that_fills_its_positions() -> None:
    editor = editor_on("gpt2", positions=256, answer_tokens=10)
    result = editor.edit(list(FACTS), evaluate=False)
    assert {warning.code for warning in result.warnings} == {"demonstrations_cut"}
    text = "The town that people in the country of France like best is " * 2
    assert len(editor.tokens.prompt(read_before(editor, text) + text).ids) <= 246
    assert editor.generate(text, max_new_tokens=10)


def answers(editor: Editor) -> Answers:
    return Answers(editor.model, editor.adapter, editor.tokens, stack=editor.stack)


def test_a_patch_file_gives_the_same_contexts_on_another_model() -> None:
    editor, other = editor_on("llama", k=8), editor_on("llama")
    patch = editor.edit(list(FACTS), evaluate=False).patch
    other.apply(EditPatch.from_bytes(patch.to_bytes()))
    for query in QUERIES:
        assert read_before(other, query) == read_before(editor, query)
