"""Locality by gold answers, and by each QAEdit record's first probe, beside the core's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

import pytest
import toy_methods
from attrs import evolve
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest, Probe
from kedit_core.evaluation import GEN_FREE, GEN_WILD, PROTOCOLS, Answers
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics.locality import GOLD, QAEDIT, Kind, LocalityMetrics
from kedit_datasets.readers.qaedit import read_qaedit
from kedit_datasets.readers.zsre import read_zsre

GOLD_NAME, FIRST_NAME = "gold.gen_free_locality", "qaedit.gen_free_first_locality"


def case(number: int = 1, **changes: Any) -> EditRequest:
    """Four probes of two sub-keys, the first one marked as QAEdit's reader marks it."""
    near = [Probe(prompt=f"{number}: {p}?", answers=(f"{p} {number}", p), meta={"first": True} if p == "a" else {})
            for p in "abc"]  # fmt: skip
    fields: dict[str, Any] = {
        "case_id": str(number),
        "prompt": f"{number}: who?",
        "target_new": "new",
        "locality": {"near": tuple(near), "far": (Probe(prompt=f"{number}: d?", answers=("d",)),)},
    }
    return EditRequest(**{**fields, **changes})


def model(requests: Sequence[EditRequest], **said: str) -> Scripted:
    """Says to the probe called a what ``a`` is, and so on; the gold answer where nothing is given."""
    return Scripted({f"{r.case_id}: {p}?": f" {said.get(p, p)}.\n" for r in requests for p in "abcd"})


def measure(kind: Kind, requests: Sequence[EditRequest], base: Scripted, edited: Scripted, **more: Any) -> Any:
    context = told(kind.group, requests=requests, **{"protocols": (GEN_FREE,), **more})
    return LocalityMetrics(kind).evaluate(context=context, requests=requests, base=base, edited=edited)


def test_gold_is_what_is_published_whatever_the_base_says() -> None:
    requests = [case()]
    wrong, right = model(requests, a="x", b="y", c="z", d="w"), model(requests)
    assert measure(GOLD, requests, wrong, right)[GOLD_NAME].value == 1.0
    assert measure(GOLD, requests, right, wrong)[GOLD_NAME].value == 0.0
    assert measure(GOLD, requests, right, wrong)[GOLD_NAME].parts["base"] == 1.0
    # the mean over sub-keys of the mean over their probes; any spelling counts
    found = measure(GOLD, requests, right, model(requests, a="a 1", b="x", d="x"))[GOLD_NAME]
    assert found.parts == {"near": pytest.approx(2 / 3), "far": 0.0, "base": 1.0}
    assert found.value == pytest.approx(1 / 3)
    assert found.tag == "gen_free.question-only.gold_EM.batch.1+merged"


def test_the_first_probe_alone_is_compared_with_the_base() -> None:
    requests = [case(1), case(2)]
    base = model(requests, a="odd")
    kept, moved = model(requests, a="odd", b="x", c="x", d="x"), model(requests)
    assert measure(QAEDIT, requests, base, kept)[FIRST_NAME].value == 1.0
    assert measure(QAEDIT, requests, base, moved)[FIRST_NAME].value == 0.0
    mixed = Scripted({**kept.said, "2: a?": " even.\n"})
    found = measure(QAEDIT, requests, base, mixed)[FIRST_NAME]
    assert found.cases == {"1": 1.0, "2": 0.0} and found.parts == {"near": 0.5}
    assert found.tag == "gen_free.question-only.first_EM.batch.2+merged"
    assert [output["prompt"] for output in found.outputs] == ["1: a?", "2: a?"]


@pytest.mark.parametrize("kind", [GOLD, QAEDIT], ids=lambda kind: kind.group)
def test_cases_alone_combine_and_all_is_asked_ahead(kind: Kind) -> None:
    requests = [case(1), case(2), evolve(case(3), case_id="3", locality={}), evolve(case(4), case_id="4")]
    base, edited = model(requests, c="x"), model(requests, a="x")
    edited.said["2: a?"] = " a.\n"
    same_when_alone(lambda some: measure(kind, some, base, edited), requests)
    context = told(kind.group, protocols=(GEN_FREE, GEN_WILD))
    read_ahead_is_enough(LocalityMetrics(kind), context, requests, base, edited)
    found = measure(kind, requests, base, edited, protocols=(GEN_FREE, GEN_WILD))
    assert {name.partition(".")[2].partition("_")[0] for name in found} == {"gen"} and len(found) == 2
    assert set(found) <= {info.name for info in LocalityMetrics(kind).register_metrics()}
    assert len(LocalityMetrics(kind).register_metrics()) == len(PROTOCOLS)


def test_probes_without_an_answer_are_left_out_of_gold_alone() -> None:
    bare = case(locality={"near": (Probe(prompt="1: a?", meta={"first": True}),)})
    said = model([bare])
    gold = measure(GOLD, [bare], said, said)[GOLD_NAME]
    assert gold.value is None and gold.left_out == 1
    assert measure(QAEDIT, [bare], said, said)[FIRST_NAME].value == 1.0


@pytest.mark.parametrize("kind", [GOLD, QAEDIT], ids=lambda kind: kind.group)
def test_nothing_is_asked_or_told_unless_wanted_and_there(kind: Kind) -> None:
    plugin, silent = LocalityMetrics(kind), Scripted()
    for context, requests in (
        (told("fluency", protocols=(GEN_FREE,)), [case()]),
        (told(kind.group, protocols=(GEN_FREE,)), [case(locality={})]),
    ):
        plugin.read_ahead(context=context, requests=requests, answers=silent)
        assert plugin.evaluate(context=context, requests=requests, base=silent, edited=silent) == {}
    assert silent.asked == []


def test_both_numbers_of_qaedit_in_one_run() -> None:
    """All five probes of a record, and the first alone as the published script has it."""
    requests = list(read_qaedit(FIXTURES / "qaedit.json"))
    catalogue = ALONE.including(*toy_methods.ALL)
    editor = Editor(*tiny("gpt2"), "nudge", catalogue=catalogue, plugins=[LocalityMetrics(QAEDIT)])
    protocols = ["tf_token", "tf_exact"]
    unedited = editor.evaluate(requests, protocols=protocols, metrics=["qaedit"])
    assert unedited["qaedit.tf_token_first_locality"].value == 1.0
    evaluation = editor.edit(requests, scenario="batch", protocols=protocols, metrics=["qaedit"]).evaluation
    assert evaluation is not None
    all_five, first = evaluation["tf_token.locality"], evaluation["qaedit.tf_token_first_locality"]
    assert (len(all_five.outputs), len(first.outputs)) == (49, 10)
    by_prompt = {(o["case"], o["prompt"]): o["score"] for o in all_five.outputs}
    expected = [by_prompt[r.case_id, r.locality["neighborhood"][0].prompt] for r in requests]
    assert [output["score"] for output in first.outputs] == expected
    assert first.value == pytest.approx(fmean(expected)) and first.value != all_five.value
    alone = [evolve(r, locality={"neighborhood": r.locality["neighborhood"][:1]}) for r in requests]
    assert editor.evaluate(alone, protocols=protocols)["tf_token.locality"].cases == first.cases


def test_memits_numbers_on_zsre() -> None:
    """Per token, of natural questions against the published answer, and the unedited model's own beside."""
    editor = Editor(*tiny("gpt2"), catalogue=ALONE, plugins=[LocalityMetrics(GOLD)])
    answers = Answers(editor.model, editor.adapter, editor.tokens)
    requests = []
    for number, request in enumerate(read_zsre(FIXTURES / "zsre_flat.json", target_policy="answer")):
        for probe in request.locality.get("neighborhood", ()):
            # an untrained model is right of nothing, so every second answer begins as it does
            (begun,) = answers.raw_generate([probe.prompt], 1)
            known = (f"{begun.strip()} {probe.answers[0]}",) if number % 2 and begun.strip() else probe.answers
            requests.append(evolve(request, locality={"neighborhood": (evolve(probe, answers=known),)}))
    result = editor.evaluate(requests, protocols=["tf_token"], metrics=["gold"])["gold.tf_token_locality"]
    pairs = [(p.prompt, p.answers[0]) for r in requests for p in r.locality["neighborhood"]]
    shares = [
        fmean(a == b for a, b in zip(tokens.predicted, tokens.target, strict=True))
        for tokens in answers.target_tokens(pairs)
    ]
    assert list(result.cases.values()) == pytest.approx(shares) and len(shares) == 8
    assert 0 < result.value == pytest.approx(fmean(shares)) == result.parts["base"]  # type: ignore[operator]
    assert result.tag == "tf_token.question-only.gold_argmax.batch.8"
