"""ZsRE in the forms it is published in, and FEVER in the same ones.

Forms, told apart by their fields (``form="auto"``):

* ``mend``: JSON lines of De Cao et al. 2021 (KnowledgeEditor) as MEND took them up; with ``logit`` and the labels
  SUPPORTS and REFUTES it is FEVER. ``input, output[{answer}], prediction, alternatives[], filtered_rephrases[]``
* ``flat``: the array ``zsre_mend_{train,eval}.json`` of ROME, MEMIT and EasyEdit. ``subject, src, pred, rephrase, alt,
  answers[], loc, loc_ans, cond``; EasyEdit's one-hop file adds ``portability{New Question, New Answer}``
* ``malmen``: MALMEN's ZsRE. ``src, rephrase, ans, loc, loc_ans``
* ``malmen_fever``: MALMEN's FEVER. ``prompt, equiv_prompt[], unrel_prompt, alt, unrel_ans``

The papers do not edit to the same answer: MEND, EasyEdit and WILD edit to the wrong ``alt``, ROME, MEMIT and MALMEN to
the true one. ``target_policy`` says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.fields import Dropped, Fields, Json
from kedit_datasets.files import file_of
from kedit_datasets.readers._questions import natural_questions, normal, questions_of
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Loaded, Report, probe, read_records

POLICIES = ("alt", "answer")
FILES: dict[str | None, tuple[str, ...]] = {
    None: ("zsre_mend_eval.json",),
    "eval": ("zsre_mend_eval.json", "structured_zeroshot-dev-new_annotated_final.jsonl"),
    "train": ("zsre_mend_train.json", "structured_zeroshot-train-new_annotated_final.jsonl"),
    "one_hop": ("zsre_mend_eval_one_hop.json",),
}


def read_zsre(
    path: Path,
    *,
    form: str = "auto",
    target_policy: str = "alt",
    split: str | None = None,
    nq: str | Path | None = None,
    question_mark: bool = False,
    apart_from: str | Path | None = None,
) -> Loaded:
    """ZsRE's questions as edits of their answers.

    Args:
        path: the file, or a folder with the published files, of which ``split`` says which.
        form: one of the module's forms; ``auto`` tells it from each record's fields.
        target_policy: ``alt`` edits to the counterfactual answer (the ground truth is then the first true one),
            ``answer`` to the first true one (the others are its aliases, and no ground truth is known). MALMEN's ZsRE
            has only true answers, its FEVER only the counterfactual ones: each is read as it is.
        split: ``train``, ``eval`` or ``one_hop`` of a folder; of a file, a note of yours. Kept in ``meta``.
        nq: JSON file ``{questions: [...], answers: [[...]]}`` that MEND takes its locality probes from, for the
            ``mend`` form: the question capitalised and with a question mark, the shortest answer first.
        question_mark: end locality questions with a question mark, as MEMIT and MALMEN do and EasyEdit does not.
        apart_from: another file of ZsRE; records with a question that is there as well, letters' case, spaces and
            punctuation aside, are left out. Train and eval files have some in common.

    Raises:
        InputError: no such file or form or policy, or no JSON.
        RequestError: what is wrong in it, by record and field.
    """
    _chosen("form", form, ("auto", *FORMS))
    _chosen("target_policy", target_policy, POLICIES)
    if type(question_mark) is not bool:
        raise InputError(f"question_mark is {question_mark!r}; it is true or false")
    for option, value in {"split": split, "nq": nq, "apart_from": apart_from}.items():
        if not isinstance(value, str | Path | None):
            raise InputError(f"{option} is {value!r}; it is {'a name' if option == 'split' else 'the path of a file'}")
    path = file_of(path, split, FILES)
    report = Report("zsre")
    pool = natural_questions(Path(nq), report) if nq is not None else []
    elsewhere = questions_of(Path(apart_from), report) if apart_from is not None else frozenset()

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        chosen = record.form(_FIELDS) if form == "auto" else form
        meta: dict[str, Json] = {"zsre": {"form": chosen, "target_policy": target_policy}}
        if split is not None:
            meta["split"] = split
        reading = _Reading(record, index, target_policy, meta, report)
        neighbour = pool[index % len(pool)] if pool else None
        made = FORMS[chosen](reading, neighbour, "?" if question_mark else "")
        if normal(made.prompt) in elsewhere:
            raise Dropped("records with a question of the other file")
        return [made]

    return read_records("zsre", path, convert, report)


class _Reading:
    """A record on its way to a request: what all forms do alike."""

    def __init__(self, record: Fields, index: int, policy: str, meta: dict[str, Json], report: Report) -> None:
        self.record, self.policy, self.meta, self.report = record, policy, meta, report
        self.case = f"zsre:{index}"

    def note(self, **values: Json) -> None:
        """Keep values under ``meta["zsre"]``; None is left out."""
        self.meta["zsre"] |= {name: value for name, value in values.items() if value is not None}

    def request(
        self,
        prompt: str,
        alternative: str | None,
        answers: Sequence[str],
        rephrases: Sequence[str],
        *,
        subject: str | None = None,
        locality: Probe | None = None,
        portability: Probe | None = None,
    ) -> EditRequest:
        """A request whose target is the alternative, or without one the first answer."""
        place = placed(prompt, subject, self.report)
        return EditRequest(
            prompt=prompt,
            target_new=answers[0] if alternative is None else alternative,
            aliases=tuple(answers[1:]) if alternative is None else (),
            ground_truth=None if alternative is None else next(iter(answers), None),
            case_id=self.case,
            rephrase_prompts=tuple(rephrases),
            locality={} if locality is None else {"neighborhood": (locality,)},
            portability={} if portability is None else {"Reasoning": (portability,)},
            meta=place.pop("meta", {}) | self.meta,
            **place,
        )


def _mend(reading: _Reading, neighbour: Probe | None, mark: str) -> EditRequest:
    record = reading.record
    prompt = record.text("input")
    alternatives = record.texts("alternatives")
    outputs = [answer for each in record.objects("output") if (answer := each.optional_text("answer"))]
    rephrases = tuple(each for each in record.texts("filtered_rephrases") if each != prompt)
    if not alternatives:
        raise Dropped("records without alternatives")
    if not rephrases:
        raise Dropped("records without rephrases")
    if not outputs and reading.policy == "answer":
        raise Dropped("records without an answer")
    if record.has("id"):
        reading.case = record.text("id") if isinstance(record.raw("id"), str) else str(record.number("id"))
    if record.has("logit"):
        logit = record.raw("logit")
        if type(logit) not in (int, float):
            raise record.fault("logit is no number")
        reading.note(logit=logit)
    reading.note(prediction=record.optional_text("prediction"), alternatives=list(alternatives))
    wanted = alternatives[0] if reading.policy == "alt" else None
    return reading.request(prompt, wanted, list(dict.fromkeys(outputs)), rephrases, locality=neighbour)


def _flat(reading: _Reading, neighbour: Probe | None, mark: str) -> EditRequest:
    record = reading.record
    prompt = record.text("src")
    alternative = record.text("alt", empty=True) if record.has("alt") or reading.policy == "alt" else None
    if alternative == "":
        # under both policies, so that both edit the same records
        raise Dropped("records without an alternative answer")
    answers, _ = record.answers("answers")
    if not answers and reading.policy == "answer":
        raise Dropped("records without an answer")
    subject, rephrases = record.optional_text("subject"), record.texts("rephrase")
    reading.note(alt=alternative, prediction=record.optional_text("pred"), condition=record.optional_text("cond"))
    locality = _neighbour(reading, "loc", "loc_ans", mark)
    wanted = alternative if reading.policy == "alt" else None
    return reading.request(
        prompt, wanted, answers, rephrases, subject=subject, locality=locality, portability=_one_hop(reading)
    )


def _malmen(reading: _Reading, neighbour: Probe | None, mark: str) -> EditRequest:
    record = reading.record
    locality = _neighbour(reading, "loc", "loc_ans", mark)
    answers, _ = record.answers("ans")
    if not answers:
        raise record.fault("ans is missing or empty")
    return reading.request(record.text("src"), None, answers, record.texts("rephrase"), locality=locality)


def _malmen_fever(reading: _Reading, neighbour: Probe | None, mark: str) -> EditRequest:
    record = reading.record
    prompt, alternative = record.text("prompt"), record.text("alt")
    rephrases = tuple(each for each in record.texts("equiv_prompt") if each != prompt)
    locality = _neighbour(reading, "unrel_prompt", "unrel_ans", "")
    return reading.request(prompt, alternative, (), rephrases, locality=locality)


FORMS: dict[str, Callable[[_Reading, Probe | None, str], EditRequest]] = {
    "mend": _mend,
    "flat": _flat,
    "malmen": _malmen,
    "malmen_fever": _malmen_fever,
}

# of forms with as many fields of a record the first one is taken: malmen's are almost all among those of flat
_FIELDS: dict[str, tuple[str, ...]] = {
    "mend": ("input", "output", "prediction", "alternatives", "filtered_rephrases", "logit"),
    "malmen": ("src", "rephrase", "ans", "loc", "loc_ans"),
    "flat": ("src", "subject", "pred", "rephrase", "alt", "answers", "loc", "loc_ans", "cond", "portability"),
    "malmen_fever": ("prompt", "equiv_prompt", "unrel_prompt", "alt", "unrel_ans"),
}


def _neighbour(reading: _Reading, name: str, answer: str, mark: str) -> Probe | None:
    """The record's locality probe; one without a prompt or an answer is left out and counted."""
    prompt, (answers, _) = reading.record.optional_text(name), reading.record.answers(answer)
    if prompt is None or not answers:
        reading.report.dropped["locality probes without prompt or answer"] += 1
        return None
    if mark and not prompt.endswith(mark):
        prompt += mark
    return probe(reading.record, prompt, answers)


def _one_hop(reading: _Reading) -> Probe | None:
    """EasyEdit's one-hop question. It follows from the alternative answer, and is asked under either policy."""
    if not reading.record.has("portability"):
        return None
    hop = reading.record.object("portability")
    question, recalled = hop.optional_text("New Question"), hop.optional_text("Recalled Relation")
    answers, _ = hop.answers("New Answer")
    if question is None or not answers:
        reading.report.dropped["portability probes without question or answer"] += 1
        return None
    return probe(hop, question, answers, recalled_relation=recalled)


def _chosen(option: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{option} is {value!r}; it is one of {', '.join(known)}")
