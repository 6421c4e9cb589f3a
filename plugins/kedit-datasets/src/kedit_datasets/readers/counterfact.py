"""CounterFact (Meng et al. 2022, "Locating and Editing Factual Associations in GPT", section 4 and appendix D).

Two schemas, told apart by the fields: the original of ROME and MEMIT (``requested_rewrite``, ``paraphrase_prompts``,
``neighborhood_prompts``, ``attribute_prompts``, ``generation_prompts``), and EasyEdit's flat one (``prompt,
target_new, ground_truth, rephrase_prompt, locality_prompt, locality_ground_truth``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, find_subject
from kedit_datasets.fields import Dropped, Fields, Json
from kedit_datasets.files import file_of
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Loaded, Report, probe, read_records

HELD_OUT = 2000
"""IKE's split (Zheng et al. 2023, section 4.1): it tests on the first records and demonstrates with the others."""

_WHOLE = ("counterfact.json", "multi_counterfact.json")
FILES: dict[str | None, tuple[str, ...]] = {
    None: _WHOLE,
    "test": _WHOLE,
    "demos": _WHOLE,
    "train": ("counterfact-train.json",),
    "val": ("counterfact-val.json",),
    "edit": ("counterfact-edit.json",),
}

_FIELDS: dict[str, tuple[str, ...]] = {
    "original": (
        "requested_rewrite",
        "paraphrase_prompts",
        "neighborhood_prompts",
        "attribute_prompts",
        "generation_prompts",
    ),
    "flat": (
        "prompt",
        "target_new",
        "subject",
        "ground_truth",
        "rephrase_prompt",
        "locality_prompt",
        "locality_ground_truth",
    ),
}


def read_counterfact(path: Path, *, split: str | None = None, clean: bool = False) -> Loaded:
    """CounterFact's counterfactual statements, each with paraphrases, neighbours and openings about its subject.

    Args:
        path: the file, or a folder with the published files.
        split: ``test``: the first 2,000 records; ``demos``: the others, without those whose subject is in the test
            records (both as IKE takes them); ``train``, ``val`` or ``edit``: EasyEdit's file of that name in a folder.
        clean: take the unrelated text before the paraphrases away, as IKE does (:func:`cleaned`).

    Raises:
        InputError: no such file or split, or no JSON.
        RequestError: what is wrong in it, by record and field.
    """
    if split not in tuple(FILES):
        raise InputError(f"split is {split!r}; it is one of {', '.join(name for name in FILES if name)}")
    if type(clean) is not bool:
        raise InputError(f"clean is {clean!r}; it is true or false")
    path = file_of(path, split, FILES)
    report = Report("counterfact")
    held_out: set[str] = set()

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        request = (_flat if record.form(_FIELDS) == "flat" else _original)(record, clean, report)
        if split in ("test", "demos"):
            _keep(request, index, split, held_out)
        return [request]

    return read_records("counterfact", path, convert, report)


def cleaned(prompt: str, subject: str) -> str:
    """A paraphrase without the text of another article before it, as IKE's ``clean_paraphrase.py`` leaves it.

    What stands before the subject is kept from the last full stop or line end on. A rest of a list of categories
    (the word "Category") is taken away up to the subject. A prompt without the subject is left as it is.
    """
    start = prompt.find(subject)
    if start < 0:
        return prompt
    before = prompt[:start]
    kept = prompt[max(before.rfind("."), before.rfind("\n")) + 1 :].strip()
    return kept[kept.find(subject) :] if "Category" in kept else kept


def _original(record: Fields, clean: bool, report: Report) -> EditRequest:
    rewrite = record.object("requested_rewrite")
    subject, template = rewrite.text("subject"), rewrite.text("prompt")
    if "{}" not in template:
        raise rewrite.fault("prompt has no {} for the subject")
    prompt = template.replace("{}", subject)
    new, true = rewrite.object("target_new"), rewrite.object("target_true")
    answer = true.text("str")
    paraphrases = _paraphrases(record.texts("paraphrase_prompts"), subject, clean, report)
    neighbours = record.texts("neighborhood_prompts")
    return EditRequest(
        prompt=prompt,
        target_new=new.text("str"),
        ground_truth=answer,
        case_id=str(record.number("case_id")),
        rephrase_prompts=paraphrases,
        locality={"neighborhood": tuple(probe(record, each, (answer,)) for each in neighbours)} if neighbours else {},
        generation_prompts=record.texts("generation_prompts"),
        **_placed(
            prompt,
            subject,
            report,
            relation_id=rewrite.optional_text("relation_id"),
            target_new_id=new.optional_text("id"),
            target_true=answer,
            target_true_id=true.optional_text("id"),
            attribute_prompts=list(record.texts("attribute_prompts")),
            pararel_idx=record.number("pararel_idx") if record.has("pararel_idx") else None,
        ),
    )


def _flat(record: Fields, clean: bool, report: Report) -> EditRequest:
    prompt, subject, answer = record.text("prompt"), record.text("subject"), record.optional_text("ground_truth")
    asked, (answers, _) = record.optional_text("locality_prompt"), record.answers("locality_ground_truth")
    if asked is None or not answers:
        report.dropped["locality probes without prompt or answer"] += 1
    return EditRequest(
        prompt=prompt,
        target_new=record.text("target_new"),
        ground_truth=answer,
        case_id=str(record.number("case_id")),
        rephrase_prompts=_paraphrases(record.texts("rephrase_prompt"), subject, clean, report),
        locality={"neighborhood": (probe(record, asked, answers),)} if asked is not None and answers else {},
        **_placed(prompt, subject, report, target_true=answer),
    )


def _paraphrases(prompts: Sequence[str], subject: str, clean: bool, report: Report) -> tuple[str, ...]:
    """The paraphrases, those without the subject counted in a note."""
    if any(find_subject(each, subject) is None and subject not in each for each in prompts):
        note = "there are paraphrases without their subject"
        report.notes += [note] if note not in report.notes else []
    return tuple(cleaned(each, subject) if clean else each for each in prompts)


def _placed(prompt: str, subject: str, report: Report, **known: Json) -> dict[str, Json]:
    """Subject and meta: what the reference-text metric looks its texts up by, and what the file has beside."""
    place = placed(prompt, subject, report)
    counterfact = {name: value for name, value in known.items() if value is not None}
    return place | {"meta": place.get("meta", {}) | {"counterfact": counterfact}}


def _keep(request: EditRequest, index: int, split: str, held_out: set[str]) -> None:
    """Drop a record that is not of the split; the test records' subjects are collected on the way."""
    subject = (request.subject or request.prompt).casefold()
    if index < HELD_OUT:
        held_out.add(subject)
        if split == "demos":
            raise Dropped("records of the test split")
    elif split == "test":
        raise Dropped("records of the other split")
    elif subject in held_out:
        raise Dropped("records with a subject of the test split")
