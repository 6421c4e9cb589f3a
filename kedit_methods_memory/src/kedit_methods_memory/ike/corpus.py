"""Demonstration records: where they come from, and what of them is shown."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import asdict, frozen

from kedit_core.editing import EditContext
from kedit_core.editing.datasets import open_requests
from kedit_core.errors import InputError, PatchFormatError, RequirementError
from kedit_core.patches import path_digest
from kedit_core.requests import EditRequest, load_requests
from kedit_methods_memory.ike import texts

ROLE = "demonstrations"


@frozen
class Record:
    """A fact that demonstrations are made of.

    Attributes:
        prompt, target: the fact.
        paraphrases: other wordings of its prompt.
        neighbours: other prompts with the answers that they keep.
    """

    prompt: str
    target: str
    paraphrases: tuple[str, ...] = ()
    neighbours: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, request: EditRequest, parts: Collection[str] = (), clean: bool = False) -> Record:
        """The record of a request. ``parts``: sub-keys of locality to take neighbours from; all when it has none."""
        named = [request.locality[part] for part in parts if request.locality.get(part)]
        probes = [probe for group in named or request.locality.values() for probe in group if probe.answers]
        wordings = request.rephrase_prompts
        if clean:
            wordings = tuple(texts.cleaned(each, request.subject) for each in wordings)
        return cls(
            request.prompt,
            request.target_new,
            tuple(each for each in wordings if each.strip()),
            tuple((probe.prompt, probe.answers[0]) for probe in probes),
        )

    def variants(self, kind: int) -> int:
        """How many demonstrations of a type there are."""
        return {texts.COPY: 1, texts.UPDATE: len(self.paraphrases), texts.RETAIN: len(self.neighbours)}[kind]

    def shown(self, kind: int, variant: int) -> tuple[str, str]:
        """The (prompt, answer) of one demonstration; IndexError when there is none."""
        if kind == texts.COPY:
            return self.prompt, self.target
        return (self.paraphrases[variant], self.target) if kind == texts.UPDATE else self.neighbours[variant]

    def text(self, kind: int, variant: int) -> str:
        """One demonstration."""
        return texts.demonstration((self.prompt, self.target), self.shown(kind, variant))


@frozen(eq=False, kw_only=True)
class Corpus:
    """Demonstration records by number.

    Attributes:
        records: all of them.
        origins: case id and prompt of each, which tell whether it is one of the edited ones.
        name: of a registered dataset; None for a file and for what was given in memory.
        sha256: of the file; of the records' canonical JSON where there is no file.
        is_file: whether it is a file that can be given again.
    """

    records: tuple[Record, ...]
    origins: tuple[tuple[str | None, str], ...]
    name: str | None
    sha256: str
    is_file: bool = False

    @classmethod
    def of(
        cls,
        requests: Sequence[EditRequest],
        parts: Collection[str] = (),
        clean: bool = False,
        name: str | None = None,
        file_sha256: str | None = None,
    ) -> Corpus:
        """The corpus of requests; what is shown of them, ``parts`` and ``clean`` say (see :meth:`Record.of`)."""
        records = tuple(Record.of(request, parts, clean) for request in requests)
        text = json.dumps([asdict(each) for each in records], sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return cls(
            records=records,
            origins=tuple((request.case_id, request.prompt.strip()) for request in requests),
            name=name,
            sha256=file_sha256 or hashlib.sha256(text.encode()).hexdigest(),
            is_file=file_sha256 is not None,
        )

    def text(self, number: int, kind: int, variant: int) -> str:
        """One demonstration; IndexError when there is none of that number, type and variant."""
        return self.records[number].text(kind, variant)

    def every_text(self) -> list[str]:
        """All demonstrations, as an index reads them."""
        kinds = (texts.COPY, texts.UPDATE, texts.RETAIN)
        return [
            record.text(kind, variant)
            for record in self.records
            for kind in kinds
            for variant in range(record.variants(kind))
        ]

    def without(self, edited: Iterable[EditRequest]) -> list[int]:
        """Numbers of the records that are none of the edited: neither of one case with one, nor of the same prompt."""
        taken = list(edited)
        cases = {request.case_id for request in taken} - {None}
        prompts = {request.prompt.strip() for request in taken}
        return [i for i, (case, prompt) in enumerate(self.origins) if case not in cases and prompt not in prompts]


def corpus_for(context: EditContext, parts: Collection[str], clean: bool) -> Corpus:
    """The demonstrations of an edit: the resource, the option, or the cases of the dataset that is meant for the model.

    Raises:
        RequirementError: none was given, and no dataset is meant for this model.
        InputError, RequestError, UnknownNameError: what was given cannot be read.
    """
    given = context.options.get(ROLE)
    if ROLE in context.resources:
        path = context.resource(ROLE)
        return Corpus.of(load_requests(path), parts, clean, file_sha256=path_digest(path))
    if isinstance(given, str | Path):
        name = None if Path(given).is_file() else str(given).partition(":")[0]
        return Corpus.of(open_requests(str(given), context.host), parts, clean, name=name)
    if given is not None:
        if not isinstance(given, Sequence) or not all(isinstance(each, EditRequest) for each in given):
            raise InputError(
                f"the option {ROLE} is a {type(given).__name__}; give a file, the name of a dataset, or a list of "
                "EditRequest"
            )
        return Corpus.of(given, parts, clean)
    for info in context.host.datasets():
        if context.model_name in info.models and info.requests is not None:
            return Corpus.of(info.requests(), parts, clean, name=info.name)
    raise RequirementError(
        "ike shows demonstrations, and none were given; give facts that are not edited, with rephrases and locality "
        f"probes, with --with {ROLE}=FILE (or options={{'{ROLE}': ...}}), or take the method ike_context, which needs "
        "none"
    )


def recorded(records: Mapping[int, Record], drawn: Iterable[tuple[int, int, int]]) -> dict[str, Any]:
    """JSON of what is shown of records, for a patch: ``drawn`` are (number, type, variant)."""
    found: dict[str, Any] = {}
    for number, kind, variant in sorted(set(drawn)):
        record = records[number]
        entry = found.setdefault(
            str(number), {"prompt": record.prompt, "target": record.target, "paraphrases": {}, "neighbours": {}}
        )
        if kind == texts.UPDATE:
            entry["paraphrases"][str(variant)] = record.paraphrases[variant]
        elif kind == texts.RETAIN:
            entry["neighbours"][str(variant)] = list(record.neighbours[variant])
    return found


class RecordedRecords:
    """The records in a patch, as :func:`recorded` wrote them."""

    def __init__(self, found: Mapping[str, Any]) -> None:
        self._found = found

    def only(self, drawn: Iterable[tuple[int, int, int]]) -> dict[str, Any]:
        """The JSON of these alone, as :func:`recorded` would have written it; ``drawn`` are (number, type, variant)."""
        kept = set(drawn)
        try:
            return self._only(kept)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PatchFormatError(
                f"the patch's demonstrations cannot be read ({error!r}); it was not made by kedit"
            ) from error

    def _only(self, kept: Collection[tuple[int, int, int]]) -> dict[str, Any]:
        numbers = {number for number, _, _ in kept}
        return {
            key: {
                **record,
                "paraphrases": {
                    v: t for v, t in record["paraphrases"].items() if (int(key), texts.UPDATE, int(v)) in kept
                },
                "neighbours": {
                    v: t for v, t in record["neighbours"].items() if (int(key), texts.RETAIN, int(v)) in kept
                },
            }
            for key, record in self._found.items()
            if int(key) in numbers
        }

    def text(self, number: int, kind: int, variant: int) -> str:
        """One demonstration. Raises PatchFormatError when the patch does not hold it."""
        try:
            record = self._found[str(number)]
            fact = (record["prompt"], record["target"])
            if kind == texts.COPY:
                return texts.demonstration(fact, fact)
            if kind == texts.UPDATE:
                return texts.demonstration(fact, (record["paraphrases"][str(variant)], fact[1]))
            prompt, answer = record["neighbours"][str(variant)]
            return texts.demonstration(fact, (prompt, answer))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PatchFormatError(
                f"the patch does not hold demonstration {number} (type {kind}, variant {variant}) that it names; it "
                "was not made by kedit"
            ) from error
