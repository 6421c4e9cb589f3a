"""Sanitation: answers to be refused from now on, among questions of TriviaQA that stay as they are.

Source: Ishibashi & Shimodaira, "Knowledge Sanitization of Large Language Models" (arXiv:2309.11852), in
KnowEdit's files ``trivia_qa_{train,test}.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import evolve

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers._splits import split_file
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import (
    Fields,
    Json,
    Loaded,
    Report,
    convert_records,
    digest,
    json_document,
    probe,
)

NAME = "sanitation"
PROMPT = "Question:{}\nAnswer:"
REFUSAL = "I don't know"
FORMS = {"train": ("K_F", "K_R"), "test": ("success", "locality")}
"""The lists of each form: what is forgotten, what is retained."""

_FILES = {name: f"trivia_qa_{name}.json" for name in ("test", "train")}


def read_sanitation(
    path: Path, *, split: str | None = None, answer: str | None = None, retain: str = "share"
) -> Loaded:
    """The requests of the train or the test file, one a question to be refused (``kind`` is ``erase``).

    ``ground_truth`` is the answer to be forgotten, ``locality["retain"]`` are questions to be answered as before the
    edit (their published answers are kept, but the reference is what the unedited model says).
    ``meta["sanitation"]`` of requests and probes: ``role`` (``forget`` or ``retain``), ``question``, and of requests
    ``form`` and ``answer``. In the train form the retained questions belong to the answers in the order of these: as
    many each, the rest to the last (0, 90, 180, 270, 360, 453 as published); in the test form they belong to all.

    Args:
        path: the file, or the folder it is in.
        split: which file of a folder: ``test`` (without one) or ``train``.
        answer: take the requests that forget this answer only (``cheese``); letters' case does not count.
        retain: ``share`` deals the retained questions out among the requests they belong to, each once; ``all`` gives
            every request all of them.

    Raises:
        InputError: another ``retain``, an answer that is not there, neither form; no such split or file, no JSON.
        RequestError: every fault, with record and field.
    """
    if retain not in ("share", "all"):
        raise InputError(f"retain is {retain!r}; it is share or all")
    path = split_file(path, split, _FILES)
    report = Report(NAME, files={path.name: digest(path)})
    form, forgotten, retained = _lists(json_document(path), path)
    kept: list[Probe] = []

    def keep(item: Fields, index: int) -> Sequence[EditRequest]:
        kept.append(_retained(item))
        return ()

    convert_records(NAME, retained, keep, Report(f"{NAME}, retained"), f"{FORMS[form][1]} of {path}")

    def forget(item: Fields, index: int) -> Sequence[EditRequest]:
        return [_forgotten(item, index, form, report)]

    loaded = convert_records(NAME, forgotten, forget, report, f"{FORMS[form][0]} of {path}")
    chosen = _with_retained(loaded, kept, apart=form == "train", share=retain == "share")
    if answer is not None:
        names = dict.fromkeys(_answer(request) for request in chosen)
        if answer.strip().lower() not in names:
            raise InputError(f"{path} has no answer {answer!r} to forget; it has {', '.join(names)}")
        chosen = [request for request in chosen if _answer(request) == answer.strip().lower()]
    report.requests = len(chosen)
    return Loaded(chosen, report)


def _lists(data: Json, path: Path) -> tuple[str, list[Json], list[Json]]:
    if isinstance(data, Mapping):
        for form, (forgotten, retained) in FORMS.items():
            if forgotten in data or retained in data:
                for name in (forgotten, retained):
                    if not isinstance(data.get(name), list):
                        raise InputError(f"{path} has no list {name}; give the file as it was published")
                return form, data[forgotten], data[retained]
    raise InputError(f"{path} has neither the lists K_F and K_R nor success and locality; give a file of Sanitation")


def _retained(item: Fields) -> Probe:
    question = item.text("question")
    answers, _ = item.answers("ground_truth")
    about: dict[str, Json] = {"role": "retain", "question": question}
    return probe(item, PROMPT.format(question), answers, **{NAME: about, "raw": item.unknown() or None})


def _forgotten(item: Fields, index: int, form: str, report: Report) -> EditRequest:
    question = item.text("question")
    answers, _ = item.answers("ground_truth")
    if not answers:
        raise item.fault("ground_truth is missing")
    prompt = PROMPT.format(question)
    placing = placed(prompt, item.optional_text("subject"), report)
    about: dict[str, Json] = {"role": "forget", "form": form, "question": question, "answer": answers[0].lower()}
    if len(answers) > 1:
        about["true_answers"] = list(answers)
    return EditRequest(
        prompt=prompt,
        target_new=item.optional_text("target_new") or REFUSAL,
        ground_truth=answers[0],
        case_id=f"{NAME}:{form}:{index}",
        kind="erase",
        meta={**placing.pop("meta", {}), NAME: about},
        **placing,
    )


def _with_retained(
    requests: Sequence[EditRequest], kept: Sequence[Probe], apart: bool, share: bool
) -> list[EditRequest]:
    names = list(dict.fromkeys(_answer(request) for request in requests)) if apart else [None]
    found: dict[int, tuple[Probe, ...]] = {}
    for number, name in enumerate(names):
        each = len(kept) // len(names)
        own = kept[number * each : (number + 1) * each if number + 1 < len(names) else None]
        members = [i for i, request in enumerate(requests) if name is None or _answer(request) == name]
        for place, index in enumerate(members):
            found[index] = tuple(own[place :: len(members)] if share else own)
    return [
        evolve(request, locality={"retain": found[index]}) if found[index] else request
        for index, request in enumerate(requests)
    ]


def _answer(request: EditRequest) -> str:
    name: str = request.meta[NAME]["answer"]
    return name
