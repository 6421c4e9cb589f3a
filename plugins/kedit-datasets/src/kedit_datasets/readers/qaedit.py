"""QAEdit (Yang et al. 2025, "The Mirage of Model Editing", arXiv 2502.11177): questions that models answer wrongly.

Records of ``{id, source, prompt, target, subject, rephrase, locality: [{loc, loc_ans}]}``, from Natural Questions
(``NQ``), TriviaQA (``TQA``) and SimpleQA (``SQA``). The edit corrects, so there is no ground truth before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.fields import Dropped, Fields
from kedit_datasets.files import file_of
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Loaded, Report, probe, read_records

SOURCES = ("NQ", "TQA", "SQA")
FILES: dict[str | None, tuple[str, ...]] = {None: ("QAEdit.json", "QAEdit_inter_1k.json")}

_DECORATIONS = " \t*†‡§^#"


def read_qaedit(path: Path, *, source: str | None = None, first_locality: bool = False) -> Loaded:
    """QAEdit's questions with the answers to be taught.

    Targets with a decoration at the end ("Wilt Chamberlain *") stay as they are published; without it they are an
    alias, so that either spelling counts as right.

    Args:
        path: the file, or a folder with the published file.
        source: ``NQ``, ``TQA`` or ``SQA``: only questions from there.
        first_locality: only the first of each record's locality probes, as the published script scores; the first is
            marked in its ``meta`` either way.

    Raises:
        InputError: no such file or source, or no JSON.
        RequestError: what is wrong in it, by record and field.
    """
    if source is not None and source not in SOURCES:
        raise InputError(f"source is {source!r}; it is one of {', '.join(SOURCES)}")
    if type(first_locality) is not bool:
        raise InputError(f"first_locality is {first_locality!r}; it is true or false")
    report = Report("qaedit")

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        request = _request(record, f"qaedit:{index}", first_locality, report)
        if source is not None and request.meta["qaedit"].get("source") != source:
            raise Dropped("records of other sources")
        return [request]

    return read_records("qaedit", file_of(path, None, FILES), convert, report)


def _request(record: Fields, case: str, first_only: bool, report: Report) -> EditRequest:
    prompt, target = record.text("prompt"), record.text("target")
    plain = target.strip(_DECORATIONS)
    if decorated := bool(plain) and plain != target:
        note = "there are targets with decorations; without them they are aliases"
        report.notes += [note] if note not in report.notes else []
    probes = _locality(record, report)
    origin = record.optional_text("source")
    place = placed(prompt, record.optional_text("subject"), report)
    return EditRequest(
        prompt=prompt,
        target_new=target,
        aliases=(plain,) if decorated else (),
        # ids count within a source
        case_id=":".join(filter(None, (origin, str(record.number("id"))))) if record.has("id") else case,
        rephrase_prompts=record.texts("rephrase"),
        locality={"neighborhood": tuple(probes[:1] if first_only else probes)} if probes else {},
        meta=place.pop("meta", {}) | {"qaedit": {} if origin is None else {"source": origin}},
        **place,
    )


def _locality(record: Fields, report: Report) -> list[Probe]:
    """The probes that have a question and an answer; the others are counted."""
    probes: list[Probe] = []
    for each in record.objects("locality"):
        question, (answers, _) = each.optional_text("loc"), each.answers("loc_ans")
        if question is None or not answers:
            report.dropped["locality probes without prompt or answer"] += 1
        else:
            probes.append(probe(each, question, answers, first=not probes))
    return probes
