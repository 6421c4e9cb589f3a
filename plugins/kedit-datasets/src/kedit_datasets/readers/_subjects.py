"""The subject of a request whose prompt was written by somebody else."""

from __future__ import annotations

import re
from typing import Any

from kedit_core.requests import find_subject
from kedit_datasets.records import Report


def placed(prompt: str, subject: str | None, report: Report) -> dict[str, Any]:
    """A subject as fields of a request: ``subject``, and ``subject_span`` where it is not found as it is written.

    One that is in the prompt in other letters' case, or inside a word, is placed by its (last) characters. One that is
    not there at all is left out, counted, and kept as ``meta["subject"]``.
    """
    if subject is None:
        return {}
    if find_subject(prompt, subject) is not None:
        return {"subject": subject}
    found = list(re.finditer(re.escape(subject), prompt, re.IGNORECASE))
    # letters that are one in one case and two in another match but do not compare equal
    if found and found[-1].group().casefold() == subject.casefold():
        return {"subject": subject, "subject_span": found[-1].span()}
    report.dropped["subjects that are not in the prompt"] += 1
    return {"meta": {"subject": subject}}
