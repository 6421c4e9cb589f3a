"""What evaluation must do whatever is edited: the checks of its definitions that concern the core's metrics.

Those of the metrics on request are in tests/plugins/datasets/test_evaluation_acceptance.py, checkpoints of sequences in
tests/plugins/bench/test_checkpoint_equals_final.py.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import toy_methods
from attrs import evolve

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.evaluation import PROTOCOLS, Answers, Evaluation, core_metrics
from kedit_core.plugins import Catalogue

EVERY = [protocol.name for protocol in PROTOCOLS]
SOME = ("gen_free", "gen_len", "tf_token")
SUCCESS = ("reliability", "generalization", "portability")


@functools.cache
def world() -> Editor:
    """A trained model with facts; no test here edits it."""
    return Editor.from_pretrained("factworld:gpt2")


def cases(count: int) -> list[EditRequest]:
    """The first cases, and one with probes of portability among them."""
    every = list(world().host.dataset("factworld").requests() or ())  # type: ignore[misc]
    return [*every[: count - 1], next(case for case in every[count:] if any(case.portability.values()))]


# ------------------------------------------------------------------ check 1
def test_check_1_a_model_that_is_asked_what_it_knows_scores_one_everywhere() -> None:
    """A real oracle: a trained model, and as new answers those that it was trained to give."""
    known = [
        evolve(
            case,
            target_new=case.ground_truth or "",
            ground_truth=None,
            portability={
                name: tuple(evolve(probe, answers=(probe.meta["before"],)) for probe in probes)
                for name, probes in case.portability.items()
            },
        )
        for case in cases(5)
    ]
    evaluation = world().evaluate(known, protocols=EVERY)
    for protocol in EVERY:
        for metric in (*SUCCESS, "locality"):
            result = evaluation[f"{protocol}.{metric}"]
            assert result.value == 1.0 and set(result.cases.values()) == {1.0}, (protocol, metric)
            assert set(result.parts.values()) <= {1.0} and result.left_out == 0
    assert len(evaluation["gen_free.portability"].cases) >= 1


def test_check_1_an_unedited_model_stays_and_has_not_moved() -> None:
    requests = cases(5)
    evaluation = world().evaluate(requests, protocols=EVERY)
    for protocol in EVERY:
        assert evaluation[f"{protocol}.locality"].value == 1.0
    # teacher forcing gives away what a true answer and a false one have in common, generation does not
    assert evaluation["gen_free.reliability"].value == evaluation["gen_free.portability"].value == 0.0
    editor = world()
    answers = Answers(editor.model, editor.adapter, editor.tokens, editor.stack)
    moved = answers.target_divergences([(case.prompt, case.target_new) for case in requests])
    assert all(each is not None and len(each) > 0 and each.eq(0).all() for each in moved)


# ------------------------------------------------------------------ check 3
@pytest.mark.parametrize(
    ("said", "answer", "free", "wild"),
    [
        ("Paris.", "Paris", 1.0, 1.0),
        (" the Paris\nThe capital of Spain is Madrid", "Paris", 1.0, 1.0),
        (" Paris, France. And", "Paris", 0.0, 0.0),
        (" St. Louis. It lies", "St. Louis", 1.0, 0.0),
        (" 3.5 million.", "3.5 million", 1.0, 0.0),
        (" J. K. Rowling\n", "J. K. Rowling", 1.0, 0.0),
        ("", "Paris", 0.0, 0.0),
    ],
)
def test_check_3_free_generation_on_scripted_outputs(
    scripted: Any, said: str, answer: str, free: float, wild: float
) -> None:
    request = EditRequest(prompt="Where is it?", target_new=answer)
    edited, base = scripted({request.prompt: said}), scripted({})
    found = core_metrics([request], base, edited, protocols=["gen_free", "gen_wild"], scenario="batch", way="merged")
    assert (found["gen_free.reliability"].value, found["gen_wild.reliability"].value) == (free, wild)
    tags = {found[f"{name}.reliability"].tag for name in ("gen_free", "gen_wild")}
    assert tags == {"gen_free.question-only.EM.batch.1+merged", "gen_wild.question-only.EM.batch.1+merged"}


# ------------------------------------------------------------------ check 4
def test_check_4_teacher_forcing_does_not_depend_on_batches_and_padding() -> None:
    """Exactly: the same scores, bit for bit, of a model that gives some answers a part of the score."""
    editor, requests, protocols = world(), cases(3), ("tf_token", "tf_exact")

    def measured(**how: Any) -> Any:
        edited = Answers(editor.model, editor.adapter, editor.tokens, editor.stack, **how)
        return core_metrics(requests, edited, edited, protocols=protocols, scenario="batch", way=None)

    alone = measured(batch_tokens=1)
    assert 0 < alone["tf_token.portability"].value < 1 and alone["tf_exact.portability"].value == 0
    for batch_tokens in (64, 8192):
        for side in ("left", "right"):
            assert measured(batch_tokens=batch_tokens, padding_side=side) == alone, (batch_tokens, side)


# ------------------------------------------------------------------ check 6
@functools.cache
def sequence() -> tuple[list[EditRequest], EditPatch]:
    """Facts edited one after another, and the patch that has them all."""
    catalogue = Catalogue.installed().including(*toy_methods.ALL)
    # one probe of a kind is enough: a model that is edited so often writes long answers, which take long
    requests = [
        evolve(
            case,
            rephrase_prompts=case.rephrase_prompts[:1],
            locality={name: probes[:1] for name, probes in case.locality.items()},
        )
        for case in cases(5)
    ]
    editor = Editor.from_pretrained("factworld:gpt2", "nudge", hparams={"strength": 150.0}, catalogue=catalogue)
    return requests, editor.edit(requests, scenario="sequential", evaluate=False).patch


def measured(requests: Sequence[EditRequest], patch: EditPatch) -> Evaluation:
    """By an Editor that has read nothing before."""
    editor = Editor.from_pretrained("factworld:gpt2")
    editor.apply(patch)
    return editor.evaluate(requests, protocols=SOME)


def by_case(evaluations: Sequence[Evaluation]) -> dict[tuple[str, str], Any]:
    """(metric, case) -> score, with the scores of its sub-keys."""
    return {
        (name, case): (
            score,
            {part: of_part.get(case) for part, of_part in result.case_parts.items() if case in of_part},
        )
        for evaluation in evaluations
        for name, result in evaluation.items()
        for case, score in result.cases.items()
    }


def test_check_6_the_order_of_evaluation_does_not_change_scores() -> None:
    """After the same edits each case scores the same, whatever is asked before, beside and after it."""
    requests, patch = sequence()
    expected = by_case([measured(requests, patch)])
    scores = [score for (name, _), (score, _) in expected.items() if name.endswith((".locality", ".reliability"))]
    assert len(set(scores)) > 3, "scores that are all alike show nothing"
    shuffled = [requests[i] for i in (3, 0, 2, 4, 1)]
    assert by_case([measured(shuffled, patch)]) == expected
    assert by_case([measured(part, patch) for part in (requests[3:], requests[:3])]) == expected
    # and with one Editor, which remembers what it read
    editor = Editor.from_pretrained("factworld:gpt2")
    editor.apply(patch)
    assert by_case([editor.evaluate(each, protocols=SOME) for each in reversed(requests)]) == expected
    assert by_case([editor.evaluate(requests[::-1], protocols=SOME)]) == expected
