"""Where the subject stands in a prompt.

Editing at a wrong token goes unnoticed, so only whole words count: ``Ann`` is not found in ``Annapolis``. In scripts
that put no space between words every place is a border.
"""

from __future__ import annotations

import unicodedata
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kedit_core.requests._types import EditRequest

# first and last code point of blocks whose words touch, or take endings without a border (Hangul)
_BORDERLESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Myanmar
    (0x1100, 0x11FF),  # Hangul letters
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # ideographic iteration mark, closing mark and zero
    (0x3040, 0x31FF),  # Hiragana, Katakana, Bopomofo, Hangul letters
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),  # Han
    (0xA960, 0xA97F),  # Hangul letters
    (0xAC00, 0xD7FF),  # Hangul syllables
    (0xF900, 0xFAFF),  # Han
    (0xFF66, 0xFFDC),  # half-width Katakana and Hangul
    (0x20000, 0x3FFFF),  # Han
)
_STARTS = tuple(start for start, _ in _BORDERLESS)


def find_subject(prompt: str, subject: str, span: tuple[int, int] | None = None) -> tuple[int, int] | None:
    """Characters ``(start, end)`` of the subject in a prompt: the last occurrence as a whole word.

    Args:
        prompt: the text.
        subject: looked for as it is written, spaces around it aside; letters' case and accents count.
        span: given by the user; wins over everything.

    Returns:
        The half-open range, or None when the subject does not occur as a whole word.
    """
    if span is not None:
        return span
    subject = subject.strip()
    if not subject:
        return None
    start = prompt.rfind(subject)
    while start >= 0:
        end = start + len(subject)
        if not _joined(prompt, start) and not _joined(prompt, end):
            return start, end
        # occurrences may overlap: only the last character must go
        start = prompt.rfind(subject, 0, end - 1)
    return None


def subject_span(request: EditRequest) -> tuple[int, int] | None:
    """:func:`find_subject` of a request: its own span, else the last whole-word occurrence, else None."""
    if request.subject is None:
        return request.subject_span
    return find_subject(request.prompt, request.subject, request.subject_span)


def _joined(text: str, place: int) -> bool:
    """Whether the characters before and after ``place`` belong to one word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    # accents and vowel signs belong to the letter before them in every script
    if unicodedata.category(after).startswith("M"):
        return True
    return _in_word(before) and _in_word(after) and not (_borderless(before) or _borderless(after))


def _in_word(character: str) -> bool:
    return character.isalnum() or character == "_" or unicodedata.category(character).startswith("M")


def _borderless(character: str) -> bool:
    block = bisect_right(_STARTS, ord(character)) - 1
    return block >= 0 and ord(character) <= _BORDERLESS[block][1]
