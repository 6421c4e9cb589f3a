"""ConvSent: edit success by sentiment and topic, and the drawdown on another topic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import toy_methods
from hypothesis import given
from hypothesis import strategies as st
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest
from kedit_core.errors import InputError
from kedit_core.forward import TokenBoundary
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.convsent import ConvSentMetrics, edit_success
from kedit_datasets.readers.convsent import read_convsent

SUCCESS, DRAWDOWN = "convsent.edit_success", "convsent.drawdown"


# ---------------------------------------------------------------------- the two scores
def test_success_is_one_half_where_nothing_changed_and_both_signs_are_as_likely() -> None:
    assert edit_success(-2.0, -2.0, -2.0) == (0.5, 1.0)


def test_the_topic_score_is_capped_at_one() -> None:
    assert edit_success(-1.0, -1.0, -5.0) == (0.5, 1.0)
    assert edit_success(-3.0, -3.0, -1.0) == (0.5, pytest.approx(math.exp(-2)))


LOGPROB = st.floats(-1e4, 0.0)


@given(LOGPROB, LOGPROB, LOGPROB)
def test_scores_are_shares_and_never_overflow(wanted: float, opposite: float, before: float) -> None:
    sentiment, topic = edit_success(wanted, opposite, before)
    assert 0.0 <= sentiment <= 1.0 and 0.0 <= topic <= 1.0
    assert sentiment + edit_success(opposite, wanted, before)[0] == pytest.approx(1.0)
    if abs(wanted - opposite) < 500:
        assert sentiment == pytest.approx(1 / (1 + math.exp(opposite - wanted)))


# ---------------------------------------------------------------------- of a known model
def topic(name: str, pos: int = 2, neg: int = 2, **more: Any) -> dict[str, Any]:
    return {
        "ent": name,
        "pos": [f"good {n} {name}" for n in range(pos)],
        "neg": [f"bad {n} {name}" for n in range(neg)],
        "pos_prompts": [f"{name}? {n}" for n in range(pos)],
        "neg_prompts": [f"And {name}? {n}" for n in range(neg)],
        **more,
    }


def request(about: Any, case: str = "1") -> EditRequest:
    return EditRequest(prompt=f"Answer {case}.", target_new="good", case_id=case, meta={"sentiment": about})


SEA = request(topic("sea", sign="positive", drawdown=topic("art")), "sea")
ART = request(topic("art", sign="negative", drawdown=topic("sea")), "art")


def pairs_of(about: Mapping[str, Any], *names: str) -> list[tuple[str, str]]:
    return [pair for name in names for pair in zip(about[f"{name}_prompts"], about[name], strict=True)]


def both(requests: Sequence[EditRequest], good: float, bad: float, moved: float | None = 0.0) -> dict[str, Any]:
    """Log-probabilities of wanted and opposite completions, two tokens each, and how far others have moved."""
    logprobs: dict[tuple[str, str], list[float]] = {}
    divergences: dict[tuple[str, str], list[float] | None] = {}
    for each in requests:
        about = each.meta["sentiment"]
        wanted, opposite = ("pos", "neg") if about["sign"] == "positive" else ("neg", "pos")
        logprobs |= {pair: [good, good] for pair in pairs_of(about, wanted)}
        logprobs |= {pair: [bad, bad] for pair in pairs_of(about, opposite)}
        shift = None if moved is None else [moved, moved]
        divergences |= dict.fromkeys(pairs_of(about.get("drawdown", topic("", 0, 0)), "pos", "neg"), shift)
    return {"logprobs": logprobs, "divergences": divergences}


def measure(requests: Sequence[EditRequest], base: Scripted, edited: Scripted) -> Mapping[str, Any]:
    context = told("convsent", requests=requests)
    return ConvSentMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


def test_a_perfect_model_has_success_one_and_no_drawdown() -> None:
    requests = [SEA, ART]
    base = Scripted(**both(requests, -5.0, -5.0), is_base=True)
    found = measure(requests, base, Scripted(**both(requests, -0.01, -60.0)))
    assert found[SUCCESS].value == pytest.approx(1.0, abs=1e-12)
    assert found[SUCCESS].parts == {"sentiment": pytest.approx(1.0), "topic": 1.0}
    assert found[DRAWDOWN].value == 0.0 and found[DRAWDOWN].unit == "nats"
    assert found[SUCCESS].tag == "tf_logprob.templates.sentiment.batch.2+merged"
    assert found[DRAWDOWN].tag == "tf_kl.templates.base.batch.2+merged"


def test_an_edit_to_the_opposite_and_a_broken_model_score_low() -> None:
    base = Scripted(**both([SEA], -3.0, -3.0), is_base=True)
    opposite = measure([SEA], base, Scripted(**both([SEA], -3.0, -1.0, moved=0.5)))
    assert opposite[SUCCESS].value == pytest.approx(1 / (1 + math.exp(2)))
    assert opposite[DRAWDOWN].value == pytest.approx(0.5)
    broken = measure([SEA], base, Scripted(**both([SEA], -9.0, -99.0, moved=4.0)))
    assert broken[SUCCESS].parts["sentiment"] == pytest.approx(1.0)
    assert broken[SUCCESS].value == pytest.approx(math.exp(-6)), "the topic is lost"


def test_averages_are_over_all_tokens_of_a_group_not_over_its_completions() -> None:
    base = Scripted(**both([SEA], -2.0, -2.0), is_base=True)
    edited = Scripted(**both([SEA], -2.0, -2.0))
    about = SEA.meta["sentiment"]
    long, short = pairs_of(about, "pos")
    edited.logprobs |= {long: [-1.0, -1.0, -1.0], short: [-5.0]}
    edited.divergences |= dict(zip(pairs_of(about["drawdown"], "pos", "neg"), [[3.0], [0.0] * 3, [], []], strict=True))
    found = measure([SEA], base, edited)
    assert found[SUCCESS].parts["sentiment"] == pytest.approx(0.5)  # (3 * -1 - 5) / 4 = -2
    assert found[DRAWDOWN].value == pytest.approx(0.75)


def test_what_cannot_be_measured_is_left_out_and_counted() -> None:
    lone = request(topic("sea", neg=0, sign="positive"), "lone")
    requests = [lone, ART]
    base = Scripted(**both(requests, -2.0, -2.0), is_base=True)
    found = measure(requests, base, Scripted(**both(requests, -2.0, -2.0)))
    assert found[SUCCESS].cases == {"art": 0.5} and found[SUCCESS].left_out == 1
    assert found[DRAWDOWN].cases == {"art": 0.0} and found[DRAWDOWN].left_out == 1
    other_tokens = measure(requests, base, Scripted(**both(requests, -2.0, -2.0, moved=None)))
    assert other_tokens[DRAWDOWN].value is None and other_tokens[DRAWDOWN].left_out == 2


def test_cases_measured_alone_combine_to_the_whole() -> None:
    requests = [SEA, ART, EditRequest(prompt="x", target_new="y", case_id="no material")]
    base, edited = Scripted(**both([SEA], -3.0, -2.0), is_base=True), Scripted(**both([SEA], -1.0, -2.0, moved=0.25))
    for model, more in ((base, both([ART], -2.0, -2.0)), (edited, both([ART], -4.0, -1.0, moved=1.5))):
        model.logprobs |= more["logprobs"]
        model.divergences |= more["divergences"]
    same_when_alone(lambda some: measure(some, base, edited), requests)
    assert len({*measure(requests, base, edited)[DRAWDOWN].cases.values()}) == 2


def test_all_is_asked_ahead_but_the_drawdown() -> None:
    requests = [SEA, ART]
    base, edited = Scripted(**both(requests, -3.0, -3.0), is_base=True), Scripted(**both(requests, -3.0, -3.0))
    read_ahead_is_enough(ConvSentMetrics(), told("convsent"), requests, base, edited)
    assert not any(kind == "divergences" for kind, _ in base.asked)


def test_nothing_is_asked_or_told_unless_wanted_and_there() -> None:
    plugin, model = ConvSentMetrics(), Scripted()
    bare = [EditRequest(prompt="x", target_new="y")]
    for context, requests in ((told("fluency"), [SEA]), (told("convsent"), bare)):
        plugin.read_ahead(context=context, requests=requests, answers=model)
        assert plugin.evaluate(context=context, requests=requests, base=model, edited=model) == {}
    assert model.asked == []
    assert {info.name: info.on_request for info in plugin.register_metrics()} == {SUCCESS: True, DRAWDOWN: True}


@pytest.mark.parametrize(
    ("about", "told_of"),
    [
        ("positive", "sign"),
        ({**topic("sea"), "sign": "neutral"}, "sign"),
        ({**topic("sea"), "sign": "positive", "pos": "good"}, "pos_prompts"),
        ({**topic("sea"), "sign": "positive", "neg_prompts": ["?"]}, "neg_prompts"),
        ({**topic("sea"), "sign": "positive", "drawdown": [1]}, "drawdown"),
        ({**topic("sea"), "sign": "positive", "drawdown": {"pos": [1], "pos_prompts": ["?"]}}, "pos_prompts"),
    ],
)
def test_odd_material_is_refused_before_anything_is_read(about: Any, told_of: str) -> None:
    model = Scripted()
    with pytest.raises(InputError, match=f"case 'odd'.*{told_of}"):
        ConvSentMetrics().read_ahead(context=told("convsent"), requests=[request(about, "odd")], answers=model)
    assert model.asked == []


# ---------------------------------------------------------------------- of real models
CATALOGUE = ALONE.including(*toy_methods.ALL)


def editor_of(family: str, **settings: Any) -> Editor:
    model, tokenizer = tiny(family)
    return Editor(model, tokenizer, "nudge", catalogue=CATALOGUE, plugins=[ConvSentMetrics()], **settings)


def some_requests(count: int) -> list[EditRequest]:
    return list(read_convsent(FIXTURES / "convsent.json"))[:count]


def plain(editor: Editor, pairs: Sequence[tuple[str, str]]) -> list[torch.Tensor]:
    """``[T, vocabulary]`` log-probabilities at answer tokens, one row at a time, in float64."""
    model, tokenizer = editor.model, editor.tokenizer
    found = []
    for question, answer in pairs:
        if model.config.is_encoder_decoder:
            target = TokenBoundary(tokenizer, encoder_decoder=True).pair(question, answer).target_ids
            fed = torch.tensor([[0, *target[:-1]]])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([tokenizer(question)["input_ids"]]), decoder_input_ids=fed).logits
            found.append((logits[0].double().log_softmax(-1), target))
            continue
        pair = TokenBoundary(tokenizer).pair(question, answer)
        with torch.no_grad():
            logits = model(torch.tensor([pair.prompt_ids + pair.target_ids])).logits[0]
        # the token at t is scored by what comes before it, and the question by nothing
        found.append((logits[len(pair.prompt_ids) - 1 : -1].double().log_softmax(-1), pair.target_ids))
    return found


def token_mean(rows: Sequence[Any]) -> float:
    own = [logprobs[t, token] for logprobs, target in rows for t, token in enumerate(target)]
    return float(torch.stack(own).mean())


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_metrics_are_those_of_a_plain_computation(family: str) -> None:
    editor = editor_of(family)
    (one, *_), before = some_requests(1), Snapshot(editor.model)
    about = one.meta["sentiment"]
    wanted, opposite, other = pairs_of(about, "pos"), pairs_of(about, "neg"), pairs_of(about["drawdown"], "pos", "neg")
    old, old_other = plain(editor, wanted), plain(editor, other)
    unedited = editor.evaluate(one, metrics=["convsent"])
    assert unedited[DRAWDOWN].value == 0.0
    margin = token_mean(old) - token_mean(plain(editor, opposite))
    assert unedited[SUCCESS].value == pytest.approx(1 / (1 + math.exp(-margin)), rel=1e-5)

    evaluation = editor.edit(one, metrics=["convsent"]).evaluation
    new, against, new_other = plain(editor, wanted), plain(editor, opposite), plain(editor, other)
    sentiment = 1 / (1 + math.exp(token_mean(against) - token_mean(new)))
    topic_score = min(1.0, math.exp(token_mean(new) - token_mean(old)))
    moved = [(p.exp() * (p - q)).sum(-1) for (p, _), (q, _) in zip(old_other, new_other, strict=True)]
    assert evaluation is not None
    assert evaluation[SUCCESS].parts["sentiment"] == pytest.approx(sentiment, rel=1e-4)
    assert evaluation[SUCCESS].parts["topic"] == pytest.approx(topic_score, rel=1e-4)
    assert evaluation[DRAWDOWN].value == pytest.approx(float(torch.cat(moved).mean()), rel=1e-4, abs=1e-6)
    assert evaluation[DRAWDOWN].value > 1e-5, "the edit moves another topic"
    editor.restore()
    assert before.differences(editor.model) == []


def test_single_edits_that_are_read_together_are_measured_as_each_alone() -> None:
    editor, requests = editor_of("llama"), some_requests(4)
    evaluation = editor.edit(requests, scenario="single", metrics=["convsent"]).evaluation
    assert evaluation is not None
    for each in requests:
        alone = editor.edit(each, scenario="single", metrics=["convsent"]).evaluation
        assert alone is not None and each.case_id is not None
        for name in (SUCCESS, DRAWDOWN):
            assert evaluation[name].cases[each.case_id] == pytest.approx(alone[name].cases[each.case_id], rel=1e-4)
    assert len(set(evaluation[DRAWDOWN].cases.values())) == 4
