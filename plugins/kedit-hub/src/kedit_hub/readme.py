"""README.md of a repository: metadata, the owner's own words, and one section for each patch, between marks.

What the owner wrote outside the marks stays; the section of a patch that is pushed again is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import date
from types import NoneType

from huggingface_hub import RepoCard
from yaml import YAMLError

from kedit_core.errors import InputError
from kedit_hub.card import LIBRARY, RELATION, Publication, section
from kedit_hub.markdown import literal

README = "README.md"
MAX_README = 4 << 20  # bytes

_SCALARS = (str, int, float, date, NoneType)
_SECTION = "<!-- kedit:patch {id} -->\n{text}<!-- kedit:end {id} -->\n"


def readme(this: Publication, old: str | None = None) -> str:
    """The README with the section of this patch; ``old`` is the one that is there.

    Raises InputError when the metadata of ``old`` cannot be read; they must not be lost.
    """
    if old is None or not old.strip():
        words = "Knowledge edits as [safetensors](https://github.com/huggingface/safetensors) patches of kedit."
        old = f"---\n{{}}\n---\n# {literal(this.title)}\n\n{words}\n"
    card = _card(old)
    data = card.data
    data["library_name"] = data.get("library_name", LIBRARY)
    if this.base_model is not None:
        data["base_model"] = _with(data.get("base_model"), this.base_model)
        data["base_model_relation"] = data.get("base_model_relation", RELATION)
    data["tags"] = list(dict.fromkeys((*_list(data.get("tags")), *this.all_tags)))
    if this.license is not None:
        data["license"] = this.license
    try:
        metadata = data.to_yaml()
    except ValueError as error:  # a number of thousands of digits
        raise _unreadable(error) from error
    return f"---\n{metadata}\n---\n{_with_section(card.text, this)}"


def decoded(data: bytes) -> str:
    """A README's text; InputError when it is not UTF-8, since what the owner wrote must not be lost."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _unreadable(error) from error


def has_section(text: str, patch_id: str) -> bool:
    """Whether a README has a section of this patch."""
    return _marked(text, patch_id) is not None


def _card(text: str) -> RepoCard:
    try:
        whole = text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}"
        return RepoCard(whole, ignore_metadata_errors=True)
    except (YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> InputError:
    return InputError(
        f"the repository's {README} cannot be read ({type(error).__name__}), so nothing was sent; mend it on its page "
        "or push to another repository"
    )


def _with_section(text: str, this: Publication) -> str:
    new = _SECTION.format(id=this.patch.id, text=section(this))
    if (found := _marked(text, this.patch.id)) is None:
        return f"{text.rstrip()}\n\n{new}"
    begin, end = found
    return text[:begin] + new + text[end:]


def _marked(text: str, patch_id: str) -> tuple[int, int] | None:
    """Begin and end of a patch's section with its marks, which are whole lines; time is linear in the text."""
    begin, end = (f"<!-- kedit:{word} {patch_id} -->" for word in ("patch", "end"))
    first = re.search(rf"^{begin}$", text, re.M)
    last = None if first is None else re.compile(rf"^{end}$\n?", re.M).search(text, first.end())
    return None if first is None or last is None else (first.start(), last.end())


def _with(known: object, model: str) -> str | list[str]:
    models = list(dict.fromkeys((*_list(known), model)))
    return models[0] if len(models) == 1 else models


def _list(value: object) -> Sequence[str]:
    if value is None:
        return []
    values = value if isinstance(value, list) else [value]
    if not all(isinstance(each, _SCALARS) for each in values):  # also: aliases of aliases make endless text
        raise _unreadable(TypeError("tags and base_model are lists of texts"))
    return [str(each) for each in values]
