"""Words that carry meaning, for telling apart how an answer went wrong. English."""

from __future__ import annotations

from collections.abc import Iterable

from kedit_core.evaluation import normalise

STOP_WORDS = frozenset(
    word
    for line in (
        "a an the this that these those such same other another any some each every all either",
        "i me my mine we our ours you your yours he him his she her hers it its they them their theirs",
        "myself yourself himself herself itself ourselves themselves",
        "who whom whose which what when where why how whether if because since although though unless while",
        "and or but nor so yet not also too very just only even still then than there again ever",
        "of in on at by to from for with without within into onto upon over under above below between among through",
        "during before after about against around across along behind beside near off out up down as per via",
        "be am is are was were been being do does did done doing have has had having",
        "can could shall should would ought",
        "much many more most few less least however therefore thus",
        "im ive id youre youve hes shes theyre thats dont doesnt didnt isnt arent wasnt werent cant wont",
    )
    for word in line.split()
)
"""Function words, without apostrophes, as :func:`kedit_core.evaluation.normalise` leaves them.

Left out of it are words that are answers, too, once they are in lower case: no, one, May, Will, U.S.
"""


def words_of(text: str) -> list[str]:
    """The normalised words of a text that have a letter or a digit."""
    return [word for word in normalise(text).split() if any(character.isalnum() for character in word)]


def content_words(text: str) -> list[str]:
    """The words of a text that are no stop-words."""
    return [word for word in words_of(text) if word not in STOP_WORDS]


def meaning_of(text: str) -> frozenset[str]:
    """The content words of a text that is known to be an answer: all its words where it has no others ("The Who")."""
    return frozenset(content_words(text) or words_of(text))


def without(text: str, pieces: Iterable[str]) -> str:
    """A text with all of these pieces taken out."""
    for piece in sorted(pieces, key=len, reverse=True):
        text = text.replace(piece, " ") if piece else text
    return text
