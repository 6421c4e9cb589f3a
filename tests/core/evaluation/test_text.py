from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kedit_core.evaluation import SENTENCE, WILD, StopRule, contains, exact_match, normalise, word_f1
from kedit_core.evaluation.text import ABBREVIATIONS, best_f1

ANYTHING = st.text(alphabet=st.characters(), max_size=40)
PROSE = st.text(alphabet="aBc .\n,3'-Éß", max_size=40)


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("Paris.", "Paris"),
        (" the Paris\nLyon", "the Paris"),
        (" St. Louis. It lies", "St. Louis"),
        (" 3.5 million. Or", "3.5 million"),
        (" J. K. Rowling. She", "J. K. Rowling"),
        (" a U.S. citizen. He", "a U.S. citizen"),
        (" Dr. Who", "Dr. Who"),
        (" e.g. a cat. So", "e.g. a cat"),
        (" Paris... or", "Paris.."),
        ("\nParis", ""),
        (" .", ""),
        (" Paris", "Paris"),
        (" first. second.", "first"),
        (" ends with best. Then", "ends with best"),
        (" example.com. Then", "example.com"),
        (" Apple Inc. It", "Apple Inc"),
    ],
)
def test_answers_end_at_a_sentence(said: str, answer: str) -> None:
    assert SENTENCE.cut(said) == answer


def test_wild_rule_cuts_at_every_dot() -> None:
    assert WILD.cut(" St. Louis. It") == "St"
    assert not exact_match(WILD.cut(" St. Louis."), ["St. Louis"])
    assert exact_match(SENTENCE.cut(" St. Louis."), ["St. Louis"])


def test_a_dot_at_the_end_is_undecided_until_more_is_known() -> None:
    assert not SENTENCE.decided(" 3.")
    assert not SENTENCE.decided(" 3.5")
    assert SENTENCE.decided(" 3. ")
    assert SENTENCE.decided(" Paris\n")
    assert SENTENCE.end(" Paris.", finished=False) is None
    assert SENTENCE.end(" Paris.", finished=True) == 6
    assert WILD.decided(" 3.")


def test_abbreviations_are_the_rules_own() -> None:
    assert StopRule(abbreviations=frozenset({"Inc"})).cut("Apple Inc. of Cupertino. x") == "Apple Inc. of Cupertino"
    assert "St" in ABBREVIATIONS


@given(PROSE, PROSE)
def test_what_is_decided_stays_so(text: str, more: str) -> None:
    for rule in (SENTENCE, WILD):
        if rule.decided(text):
            assert rule.end(text + more, finished=True) == rule.end(text, finished=False)
            assert rule.cut(text + more) == rule.cut(text)


@given(ANYTHING)
def test_cut_is_a_stripped_line_of_the_text(text: str) -> None:
    for rule in (SENTENCE, WILD):
        answer = rule.cut(text)
        assert answer == answer.strip() and "\n" not in answer and answer in text
    assert "." not in WILD.cut(text)


@given(ANYTHING)
def test_normalise_is_a_projection(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert "  " not in once and once == once.strip()


@given(st.lists(st.sampled_from(["Paris", "the", "St.", "Louis,", "A", "an", "x-ray"]), min_size=1, max_size=6))
def test_case_articles_punctuation_and_spaces_do_not_matter(words: list[str]) -> None:
    plain = " ".join(words)
    shouted = "  ".join(word.upper() + "!" for word in words)
    assert normalise(plain) == normalise(shouted)
    if set(map(str.lower, words)) - {"the", "a", "an"}:
        assert normalise("The " + plain) == normalise(plain)


def test_normalise_by_hand() -> None:
    assert normalise("  The “St. Louis”, a\tCity! ") == "st louis city"
    assert normalise("3.5 %") == "35"
    assert normalise("A") == "a"  # a grade, not an article


def test_exact_match_any_alias_and_no_empty_match() -> None:
    assert exact_match("the NYC.", ["New York", "NYC"])
    assert not exact_match("New York City", ["New York", "NYC"])
    assert not exact_match("", ["?!"])
    assert not exact_match("Paris", [])


def test_contains_whole_words_in_order() -> None:
    assert contains("It is New York, of course", ["new york"])
    assert not contains("York is New", ["New York"])
    assert not contains("Newark", ["New"])
    assert not contains("anything", ["..."])


def test_word_f1_by_hand() -> None:
    assert word_f1("New York City", "New York") == pytest.approx(0.8)
    assert word_f1("a b b", "b b c") == pytest.approx(0.8)  # "a" is an article: 2 common of 2 and 3
    assert word_f1("", "...") == 1.0
    assert word_f1("x", "") == 0.0
    assert best_f1("NYC", ["New York", "nyc"]) == 1.0
    assert best_f1("NYC", []) == 0.0


@given(ANYTHING, ANYTHING)
def test_word_f1_is_symmetric_and_bounded(left: str, right: str) -> None:
    assert word_f1(left, right) == word_f1(right, left)
    assert 0.0 <= word_f1(left, right) <= 1.0
    assert word_f1(left, left) == 1.0
