"""KnowEdit's four question-and-answer tasks: WikiData_recent, WikiData_counterfact, ZsRE, WikiBio.

Source: Zhang et al., "A Comprehensive Study of Knowledge Editing for Large Language Models" (arXiv:2401.01286), files
of ``zjunlp/KnowEdit`` under ``benchmark/``. ConvSent and Sanitation have readers of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers._splits import split_file
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Dropped, Fields, Json, Loaded, Report, read_records

TASKS = {"recent": "insert", "counterfact": "modify", "zsre": "modify", "wikibio": "modify"}
"""What the edits of each task do (``EditRequest.kind``)."""

_FILES = {
    "recent": {"test": "recent_test.json", "train": "recent_train.json"},
    "counterfact": {"test": "test_cf.json", "train": "train_cf.json"},
    "zsre": {"test": "ZsRE-test-all.json"},
    "wikibio": {"test": "wikibio-test-all.json", "train": "wikibio-train-all.json"},
}


def read_recent(path: Path, *, split: str | None = None) -> Loaded:
    """:func:`read_knowedit` of WikiData_recent."""
    return read_knowedit(path, task="recent", split=split)


def read_counterfact(path: Path, *, split: str | None = None) -> Loaded:
    """:func:`read_knowedit` of WikiData_counterfact."""
    return read_knowedit(path, task="counterfact", split=split)


def read_zsre(path: Path, *, split: str | None = None) -> Loaded:
    """:func:`read_knowedit` of KnowEdit's ZsRE."""
    return read_knowedit(path, task="zsre", split=split)


def read_wikibio(path: Path, *, split: str | None = None) -> Loaded:
    """:func:`read_knowedit` of WikiBio."""
    return read_knowedit(path, task="wikibio", split=split)


def read_knowedit(path: Path, *, task: str, split: str | None = None) -> Loaded:
    """The requests of one task's file, one a record.

    All aliases are accepted answers. Where answers are lists of lists each inner list is a further answer that the
    benchmark asks for, with its aliases: any of them is accepted, and ``probe.meta["required"]`` keeps the lists for
    whoever wants them all. A prompt given as a list makes one probe of each wording; they share ``meta["item"]``.
    Probes without a prompt or an answer, and records without a target, are left out and counted.

    Args:
        path: the file, or the folder it is in.
        task: one of :data:`TASKS`.
        split: which file of a folder: ``test`` (without one) or ``train``.

    Raises:
        InputError: no such task or split; no such file, no JSON, or a Git LFS pointer.
        RequestError: every fault, with record and field.
    """
    if task not in TASKS:
        raise InputError(f"KnowEdit has no task {task!r}; it has {', '.join(TASKS)}")
    name = f"knowedit-{task}"
    report = Report(name)

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        return [_request(record, f"{name}:{index}", TASKS[task], report)]

    return read_records(name, split_file(path, split, _FILES[task]), convert, report)


def _request(record: Fields, case: str, kind: str, report: Report) -> EditRequest:
    prompt = record.text("prompt", "text")
    targets, required = _answers(record, "target_new", "labels")
    if not targets:
        if not (record.has("target_new") or record.has("labels")):
            raise record.fault("target_new is missing")
        raise Dropped("records without a target")
    truths, _ = _answers(record, "ground_truth")
    placing = placed(prompt, record.optional_text("subject", "concept"), report)
    meta: dict[str, Json] = placing.pop("meta", {})
    if len(truths) > 1:
        meta["true_answers"] = list(truths)
    if required:
        meta["required"] = required
    return EditRequest(
        prompt=prompt,
        target_new=targets[0],
        aliases=targets[1:],
        ground_truth=truths[0] if truths else None,
        case_id=case,
        kind=kind,
        rephrase_prompts=tuple(dict.fromkeys((*record.texts("rephrase"), *record.texts("rephrase_prompt")))),
        locality=_probes(record, "locality", report),
        portability=_probes(record, "portability", report),
        meta=meta,
        **placing,
    )


def _probes(record: Fields, group: str, report: Report) -> dict[str, tuple[Probe, ...]]:
    """Sub-keys that have probes; one that is absent, null or empty is absent."""
    found: dict[str, tuple[Probe, ...]] = {}
    for key, items in record.group(group).items():
        probes: list[Probe] = []
        for number, item in enumerate(items):
            prompts = item.texts("prompt")
            answers, required = _answers(item, "ground_truth")
            if not prompts or not answers:
                report.dropped[f"probes without {'an answer' if prompts else 'a prompt'}"] += 1
                continue
            meta: dict[str, Json] = {"item": number} if len(prompts) > 1 else {}
            if required:
                meta["required"] = required
            probes += [Probe(prompt=prompt, answers=answers, meta=meta) for prompt in prompts]
        if probes:
            found[key] = tuple(probes)
    return found


def _answers(fields: Fields, *names: str) -> tuple[tuple[str, ...], list[list[str]] | None]:
    """Every accepted answer once; and, where they were nested, the inner lists without their blanks."""
    flat, nested = fields.answers(*names)
    if not nested:
        return flat, None
    value = next(fields.raw(name) for name in names if fields.has(name))
    inner = [each if isinstance(each, list) else [each] for each in value]
    stripped = [list(dict.fromkeys(text.strip() for text in each if text and text.strip())) for each in inner]
    return flat, [each for each in stripped if each]
