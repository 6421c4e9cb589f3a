"""FastEdit's own small files (hiyouga/FastEdit, ``data/example.json``): ``{prompt, subject, target, queries[]}``.

``{}`` in the prompt stands for the subject; queries are other ways to ask for the fact, which it is tried out on.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kedit_core.requests import EditRequest
from kedit_datasets.fields import Fields
from kedit_datasets.files import file_of
from kedit_datasets.records import Loaded, read_records

FILES: dict[str | None, tuple[str, ...]] = {None: ("example.json",)}


def read_fastedit(path: Path) -> Loaded:
    """The facts of a file in FastEdit's format; queries become rephrases.

    Args:
        path: the file, or a folder with ``example.json``.

    Raises:
        InputError: no such file, or no JSON.
        RequestError: what is wrong in it, by record and field; a prompt without ``{}`` among it.
    """
    return read_records("fastedit", file_of(path, None, FILES), _convert)


def _convert(record: Fields, index: int) -> Sequence[EditRequest]:
    template, subject = record.text("prompt"), record.text("subject")
    if "{}" not in template:
        raise record.fault("prompt has no {} for the subject")
    start = template.rindex("{}")
    # the last place counts, as with any subject; what follows it stays as long as it is
    prompt = template.replace("{}", subject)
    end = len(prompt) - (len(template) - start - 2)
    return [
        EditRequest(
            prompt=prompt,
            target_new=record.text("target"),
            subject=subject,
            subject_span=(end - len(subject), end),
            case_id=f"fastedit:{index}",
            rephrase_prompts=record.texts("queries"),
        )
    ]
