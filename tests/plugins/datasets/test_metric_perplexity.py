"""Perplexities: of new targets (WikiBio), and of published texts about the subject (CounterFact's essence)."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pytest
import torch
import toy_methods
from metric_tools import ALONE, told
from plugins.datasets.reader_tools import FIXTURES
from plugins.datasets.scripted_answers import Scripted, read_ahead_is_enough, same_when_alone

from kedit_core import Editor, EditRequest
from kedit_core.errors import InputError, RequirementError
from kedit_core.evaluation import Evaluation, combine
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_datasets.metrics import essence, perplexity
from kedit_datasets.metrics.essence import EssenceMetrics
from kedit_datasets.metrics.perplexity import PerplexityMetrics
from kedit_datasets.readers.counterfact import read_counterfact
from kedit_datasets.readers.knowedit import read_wikibio

CATALOGUE = ALONE.including(*toy_methods.ALL)


# ---------------------------------------------------------------------- of targets
def fact(number: int = 1, **changes: Any) -> EditRequest:
    return EditRequest(**{"case_id": str(number), "prompt": f"{number} is", "target_new": "a b", **changes})


def model(requests: Sequence[EditRequest], *logprobs: Sequence[float]) -> Scripted:
    pairs = [(request.prompt, request.target_new) for request in requests]
    return Scripted(logprobs=dict(zip(pairs, logprobs, strict=True)))


def measure(requests: Sequence[EditRequest], base: Scripted, edited: Scripted) -> Any:
    context = told("perplexity", requests=requests)
    return PerplexityMetrics().evaluate(context=context, requests=requests, base=base, edited=edited)


def test_the_perplexity_of_a_target_is_that_of_its_tokens() -> None:
    requests = [fact(1), fact(2), fact(3)]
    base = model(requests, *[[-1.0, -1.0]] * 3)
    result = measure(requests, base, model(requests, [0.0, 0.0], [-1.0, -3.0], [-4.0]))[perplexity.NAME]
    assert result.cases == {"1": 1.0, "2": pytest.approx(math.exp(2)), "3": pytest.approx(math.exp(4))}
    assert result.value == pytest.approx(fmean([1, math.exp(2), math.exp(4)]))
    assert result.parts == {"base": pytest.approx(math.e), "median": pytest.approx(math.exp(2))}
    assert (result.unit, result.tag) == ("perplexity", "tf_logprob.question-only.perplexity.batch.3+merged")


def test_what_is_impossible_has_a_number_still() -> None:
    requests = [fact()]
    result = measure(requests, model(requests, [-1.0]), model(requests, [-math.inf, -1.0]))[perplexity.NAME]
    assert math.isfinite(result.value) and result.value > 1e300
    assert Evaluation.from_json(Evaluation(metrics={perplexity.NAME: result}).to_json())


def test_targets_are_asked_ahead_and_cases_combine() -> None:
    requests = [fact(1), fact(2), fact(2, prompt="again")]
    base, edited = (model(requests, [-1.0 * n], [-2.0, -0.5 * n], [-3.0]) for n in (1, 2))
    read_ahead_is_enough(PerplexityMetrics(), told("perplexity"), requests, base, edited)
    same_when_alone(lambda some: measure(some, base, edited), requests)
    silent = Scripted()
    PerplexityMetrics().read_ahead(context=told("fluency"), requests=requests, answers=silent)
    assert PerplexityMetrics().evaluate(context=told(), requests=requests, base=silent, edited=silent) == {}
    assert silent.asked == []


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_of_wikibio_with_a_real_model(family: str) -> None:
    editor = Editor(*tiny(family), "nudge", catalogue=CATALOGUE, plugins=[PerplexityMetrics()])
    requests = [r for r in read_wikibio(FIXTURES / "knowedit_wikibio.json") if r.subject][:4]
    unedited = editor.evaluate(requests, protocols=(), metrics=["perplexity"])[perplexity.NAME]
    assert unedited.value == unedited.parts["base"]
    for request in requests:
        pair = editor.tokens.pair(request.prompt, request.target_new)
        with torch.no_grad():
            if family == "t5":
                fed = torch.tensor([[0, *pair.target_ids[:-1]]])
                logits = editor.model(input_ids=torch.tensor([pair.prompt_ids]), decoder_input_ids=fed).logits[0]
            else:
                row = torch.tensor([pair.prompt_ids + pair.target_ids])
                logits = editor.model(row).logits[0, len(pair.prompt_ids) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits.double(), torch.tensor(pair.target_ids))
        assert unedited.cases[request.case_id] == pytest.approx(math.exp(loss), rel=1e-5)  # type: ignore[index]
    evaluation = editor.edit(requests, scenario="single", protocols=(), metrics=["perplexity"]).evaluation
    assert evaluation is not None
    edited = evaluation[perplexity.NAME]
    assert edited.parts["base"] == pytest.approx(unedited.value) and edited.value != pytest.approx(unedited.value)
    assert edited.parts["median"] == pytest.approx(median(edited.cases.values()))


# ---------------------------------------------------------------------- of texts about the subject
def snippets(*samples: tuple[str | None, str]) -> list[Any]:
    """A file of one answer with these (name, text), and one of another answer about the same subject."""
    texts = [{"name": name, "text": text} if name else {"text": text} for name, text in samples]
    other = [{"name": "Mira Solenne", "text": "never read"}]
    return [
        {"relation_id": "P1303", "target_id": "Q10", "samples": texts},
        {"relation_id": "P1303", "target_id": "Q11", "samples": other},
    ]


LONG = "Mira Solenne (born 3 May 1901) was a player of the oboe. " * 12


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(snippets(("Mira Solenne", "She was born."), ("Ansel", "no"), (None, "no"))))
    return path


def about(subject: str = "Mira Solenne", case: str = "1", target: str = "Q10") -> EditRequest:
    return EditRequest(
        prompt=f"{subject} plays the",
        subject=subject,
        target_new="oboe",
        case_id=case,
        meta={"counterfact": {"relation_id": "P1303", "target_new_id": target}},
    )


def editor_of(family: str, file: Path | None) -> Editor:
    resources = {} if file is None else {essence.ROLE: file}
    plugins = [EssenceMetrics()]
    return Editor(*tiny(family), "nudge", catalogue=CATALOGUE, plugins=plugins, resources=resources)


def plain(editor: Editor, text: str) -> float:
    """The published code's: all tokens of the text, the first 100, divided by their number."""
    ids = torch.tensor([editor.tokens.prompt(text).ids[:100]])
    with torch.no_grad():
        logprobs = editor.model(ids).logits.double().log_softmax(-1)
    read = logprobs[0, :-1].gather(1, ids[0, 1:, None])
    return math.exp(-float(read.sum()) / ids.shape[1])


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("text", ["She was born.", LONG])
def test_essence_is_that_of_the_published_code(family: str, text: str, file: Path) -> None:
    file.write_text(json.dumps(snippets(("Mira Solenne", text), ("Ansel", "no"), ("Mira Solenne", "And died."))))
    editor, request = editor_of(family, file), about()
    before, expected = Snapshot(editor.model), plain(editor, f"{text} And died.")
    unedited = editor.evaluate(request, protocols=(), metrics=["essence"])[essence.NAME]
    assert unedited.value == unedited.parts["base"] == pytest.approx(expected, rel=1e-5)
    evaluation = editor.edit(request, protocols=(), metrics=["essence"]).evaluation
    assert evaluation is not None
    drifted = evaluation[essence.NAME]
    assert drifted.parts["base"] == pytest.approx(expected, rel=1e-5)
    assert drifted.value == pytest.approx(plain(editor, f"{text} And died."), rel=1e-5) != pytest.approx(expected)
    assert drifted.outputs[0]["prompt"] == f"{text} And died."
    assert drifted.tag.startswith("lm_100.text.snippets-") and drifted.tag.endswith(".batch.1+merged")
    editor.restore()
    assert before.differences(editor.model) == []


def test_only_texts_about_the_subject_that_have_the_answer(file: Path) -> None:
    editor = editor_of("gpt2", file)
    others = [about("Nobody", "2"), about(case="3", target="Q99"), EditRequest(prompt="x", target_new="y", case_id="4")]
    result = editor.evaluate([about(), *others], protocols=(), metrics=["essence"])[essence.NAME]
    assert set(result.cases) == {"1"} and result.left_out == 3
    nothing = editor.evaluate(others, protocols=(), metrics=["essence"])[essence.NAME]
    assert (nothing.value, nothing.left_out) == (None, 3)


def test_an_encoder_decoder_reads_no_text_from_left_to_right(file: Path) -> None:
    result = editor_of("t5", file).evaluate(about(), protocols=(), metrics=["essence"])[essence.NAME]
    assert (result.value, result.left_out) == (None, 1)


def test_single_edits_are_measured_each_alone(file: Path) -> None:
    file.write_text(json.dumps(snippets(("Mira Solenne", "She was born."), ("Ansel Brück", "He was not."))))
    editor, requests = editor_of("llama", file), [about(), about("Ansel Brück", "2"), about("Nobody", "3")]
    evaluation = editor.edit(requests, scenario="single", protocols=(), metrics=["essence"]).evaluation
    assert evaluation is not None
    apart = [editor.edit(each, scenario="single", protocols=(), metrics=["essence"]).evaluation for each in requests]
    assert all(apart)
    together = combine([each for each in apart if each is not None])[essence.NAME]
    assert evaluation[essence.NAME].cases == pytest.approx(together.cases)
    assert evaluation[essence.NAME].left_out == together.left_out == 1
    assert len({*evaluation[essence.NAME].cases.values()}) == 2


def test_missing_and_odd_files_are_told(file: Path, tmp_path: Path) -> None:
    with pytest.raises(RequirementError, match=r"--with attribute_snippets=attribute_snippets\.json"):
        editor_of("gpt2", None).evaluate(about(), metrics=["essence"])
    with pytest.raises(RequirementError, match=r"attribute_snippets at .*none\.json is no file"):
        editor_of("gpt2", tmp_path / "none.json").evaluate(about(), metrics=["essence"])
    file.write_text(json.dumps([*snippets(("x", "y")), {"relation_id": "P1", "target_id": "Q1", "samples": [3]}]))
    with pytest.raises(InputError, match="record 2 of"):
        editor_of("gpt2", file).evaluate(about(), metrics=["essence"])
    file.write_text(json.dumps([{"relation_id": "P1", "target_id": "Q1", "samples": [{"name": 3, "text": "x"}]}]))
    with pytest.raises(InputError, match="something else where ids and texts"):
        editor_of("gpt2", file).evaluate(about(), metrics=["essence"])


def test_of_the_dataset(tmp_path: Path) -> None:
    """Relation, answer and subject are found as CounterFact's reader writes them."""
    requests = list(read_counterfact(FIXTURES / "counterfact.json"))
    first = requests[0].meta["counterfact"]
    path = tmp_path / "attribute_snippets.json"
    sample = {"name": requests[0].subject, "text": "A text about it."}
    record = {"relation_id": first["relation_id"], "target_id": first["target_new_id"], "samples": [sample]}
    path.write_text(json.dumps([record]))
    result = editor_of("gpt2", path).evaluate(requests, protocols=(), metrics=["essence"])[essence.NAME]
    assert set(result.cases) == {requests[0].case_id} and result.left_out == len(requests) - 1
