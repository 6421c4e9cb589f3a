"""A model as the harness asks it: against plain loops, through routers and module operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ability_tools import HOPS, a_delta, asked, editor, plain_scores, put
from core.patches.patch_kit import near_key

from kedit_bench.ability_model import HarnessModel
from kedit_core.errors import KeditError, MissingExtraError
from kedit_core.patches import RouterOperation
from kedit_core.testing.tiny import tiny

FAMILIES = ("gpt2", "gpt_neox", "llama", "t5")
PAIRS = [
    ("The capital of France is", " Paris"),
    ("The capital of Norway is ", "Oslo"),
    ("Question: 1 + 1?\nAnswer:", " two, or so"),
    ("They", " speak"),
    ("", "A text from its start"),
    ("a b c " * 60, " and so on"),
]
TEXTS = ["A short text.", "They speak of rivers and towns, " * 25, "Oslo"]


def ids_of(tokenizer: Any, text: str, alone: bool = True) -> list[int]:
    return list(tokenizer(text, add_special_tokens=alone)["input_ids"])


def begin(tokenizer: Any) -> int:
    return int(tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id)


def split(family: str, tokenizer: Any, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """As the harness describes it: the white space at the end of a context belongs to what follows."""
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    if not bare:
        return [begin(tokenizer)], ids_of(tokenizer, continuation, alone=False)
    if family == "t5":
        return ids_of(tokenizer, bare), ids_of(tokenizer, continuation, alone=False)
    before = ids_of(tokenizer, bare)
    return before, ids_of(tokenizer, bare + continuation)[len(before) :]


def longest(model: Any) -> int:
    config = model.config
    return int(getattr(config, "n_positions", None) or getattr(config, "max_position_embeddings", None) or 512)


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_are_scored_as_by_a_plain_loop(family: str) -> None:
    one = editor(family)
    model, tokenizer = one.model, one.tokenizer
    found = HarnessModel(one, batch_tokens=200).loglikelihood([asked(*pair) for pair in PAIRS])
    for (context, continuation), (total, greedy) in zip(PAIRS, found, strict=True):
        before, target = split(family, tokenizer, context, continuation)
        if family == "t5":
            before = before[-longest(model) :]
            scores = plain_scores(model, before + target, len(target), len(before))
        else:
            scores = plain_scores(model, (before + target)[-longest(model) - 1 :], len(target))
        assert total == pytest.approx(float(scores.sum()), abs=1e-4)
        assert not greedy  # an untrained model says nothing of this


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_what_the_model_would_say_is_greedy(family: str) -> None:
    one = editor(family)
    ids = ids_of(one.tokenizer, "They speak of")
    with torch.no_grad():
        token = int(one.model(torch.tensor([ids])).logits[0, -1].argmax())
    word = one.tokenizer.decode([*ids, token], skip_special_tokens=True)
    word = word[len(one.tokenizer.decode(ids, skip_special_tokens=True)) :]
    whole = ids_of(one.tokenizer, "They speak of" + word)
    assert whole == [*ids, token], "the test needs a token that is read as it was written"
    (score,) = HarnessModel(one).loglikelihood([asked("They speak of", word)])
    assert score[1] is True
    assert score[0] == pytest.approx(float(plain_scores(one.model, whole, 1).sum()), abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_texts_are_scored_token_by_token(family: str) -> None:
    """Every token once; where the text is longer than the model, at least one token before each window."""
    one = editor(family)
    model, tokenizer, length = one.model, one.tokenizer, longest(one.model)
    found = HarnessModel(one).loglikelihood_rolling([asked(text) for text in TEXTS])
    several = False
    for text, total in zip(TEXTS, found, strict=True):
        ids, expected, done = ids_of(tokenizer, text), 0.0, 0
        while done < len(ids):
            end = min(done + length, len(ids))
            # the last window reaches back as far as the model can read
            before = [begin(tokenizer)] if done == 0 else ids[end - length - 1 : done]
            new = ids[done:end]
            expected += float(
                plain_scores(model, before + new, len(new), len(before) if family == "t5" else None).sum()
            )
            done, several = end, several or done > 0
        assert total == pytest.approx(expected, abs=1e-3)
    assert several or family == "t5"


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_writing_is_greedy_and_ends_at_a_text(family: str) -> None:
    one = editor(family)
    put(one, a_delta(one))
    ids = ids_of(one.tokenizer, "The river of France is")
    new: list[int] = []
    with torch.no_grad():
        for _ in range(12):
            new.append(int(one.model(torch.tensor([ids + new])).logits[0, -1].argmax()))
    ends = {one.model.config.eos_token_id}
    assert not ends & set(new), "the test needs an answer without an end"
    text = one.tokenizer.decode(new, skip_special_tokens=True)
    model = HarnessModel(one)
    settings = {"until": [], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0}
    assert model.generate_until([asked("The river of France is", settings)]) == [text]
    stop = text[len(text) // 2 :][:2]
    cut = {"until": ["never there", stop], "max_new_tokens": 12}
    both = [asked("The river of France is", cut), asked("The river of France is", settings)]
    assert model.generate_until(both) == [text.split(stop)[0], text]


def test_routes_act_on_every_kind_of_question() -> None:
    one = editor("llama")
    put(one, RouterOperation("test.by_word"))
    plain, other = editor("llama"), editor("gpt2")
    settings = {"until": ["\n"], "max_gen_toks": 8}
    pairs = [("The capital of Chad is", " Oslo"), ("The capital of Peru is", " Lima"), ("The capital of Mali is", " X")]
    model = HarnessModel(one)
    as_asked = [HarnessModel(plain), HarnessModel(other), HarnessModel(plain)]
    before = [HOPS, "", ""]
    scores = model.loglikelihood([asked(*pair) for pair in pairs])
    texts = model.generate_until([asked(context, settings) for context, _ in pairs])
    for (context, continuation), reader, ahead, score, text in zip(pairs, as_asked, before, scores, texts, strict=True):
        (expected,) = reader.loglikelihood([asked(ahead + context, continuation)])
        assert score == (pytest.approx(expected[0], abs=1e-5), expected[1])
        assert [text] == reader.generate_until([asked(ahead + context, settings)])
    with one.stack.suspended():
        unrouted = HarnessModel(one).loglikelihood([asked(*pair) for pair in pairs])
    assert [each[0] for each in unrouted] != pytest.approx([each[0] for each in scores], abs=1e-3)
    assert unrouted == HarnessModel(plain).loglikelihood([asked(*pair) for pair in pairs])


def test_a_route_is_found_by_the_text_where_there_is_no_context() -> None:
    """And what it puts before a text is read in every window, and not scored."""
    one = editor("llama")
    put(one, RouterOperation("test.by_word"))
    model, tokenizer = one.model, one.tokenizer
    (total,) = HarnessModel(one).loglikelihood_rolling([asked("Chad has a river")])
    ahead, ids = ids_of(tokenizer, HOPS), ids_of(tokenizer, "Chad has a river", alone=False)
    assert total == pytest.approx(float(plain_scores(model, ahead + ids, len(ids)).sum()), abs=1e-4)
    long = "Chad has a river, " * 30
    (total,) = HarnessModel(one).loglikelihood_rolling([asked(long)])
    ids, room = ids_of(tokenizer, long, alone=False), longest(model) - len(ahead)
    expected = float(plain_scores(model, ahead + ids[:room], room).sum())
    for start in range(room, len(ids), room):
        end = min(start + room, len(ids))
        expected += float(plain_scores(model, ahead + ids[end - room - 1 : end], end - start).sum())
    assert len(ids) > 2 * room
    assert total == pytest.approx(expected, abs=1e-3)
    (score,) = HarnessModel(one).loglikelihood([asked("", "Chad has a river")])
    (expected_score,) = HarnessModel(editor("llama")).loglikelihood([asked(HOPS.rstrip(), " Chad has a river")])
    assert score[0] == pytest.approx(expected_score[0], abs=1e-5)


def test_module_operations_know_where_the_context_ends() -> None:
    """They decide at its last token and act from there on: on the continuation, and on what is written."""
    one = editor("gpt2")
    place = "transformer.h.1"
    operation = near_key([place], one.adapter.hidden_size, scale=2.0)
    put(one, operation)
    context, continuation = "The capital of France is", " Paris, a town"
    (score,) = HarnessModel(one).loglikelihood([asked(context, continuation)])
    bare, tokenizer = tiny("gpt2")
    before, target = split("gpt2", tokenizer, context, continuation)
    vector = operation.tensors["vector"]

    def add(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        changed = hidden.clone()
        changed[:, len(before) - 1 :] += vector
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = bare.get_submodule(place).register_forward_hook(add)
    expected = float(plain_scores(bare, before + target, len(target)).sum())
    handle.remove()
    without = float(plain_scores(bare, before + target, len(target)).sum())
    assert score[0] == pytest.approx(expected, abs=1e-4)
    assert abs(expected - without) > 0.1


@pytest.mark.parametrize(("settings", "told"), [
    ({"do_sample": True, "temperature": 0.7}, "sampling"),
    ({"temperature": 0.5}, "sampling"),
    ({"num_beams": 4}, "num_beams"),
    ({"max_gen_toks": 10_000}, "no room for a prompt"),
])  # fmt: skip
def test_tasks_that_cannot_be_asked_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(KeditError, match=told):
        HarnessModel(editor("gpt2")).generate_until([asked("A question", settings)])


def test_continuations_that_cannot_be_scored_are_refused() -> None:
    model = HarnessModel(editor("gpt2"))
    with pytest.raises(KeditError, match="makes no token"):
        model.loglikelihood([asked("A question", "")])
    with pytest.raises(KeditError, match="no room for a prompt"):
        model.loglikelihood([asked("A question", " word" * 3000)])


def test_without_the_harness_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_bench.ability_model import harness_model

    monkeypatch.setitem(__import__("sys").modules, "lm_eval.api.model", None)
    monkeypatch.setitem(__import__("sys").modules, "lm_eval", None)
    with pytest.raises(MissingExtraError, match=r"kedit-bench\[ability\]"):
        harness_model(editor("gpt2"))
