"""Keys, radii and answers of a codebook: the sheet's table of cases on keys one can draw."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_methods_memory.grace.book import Book, Rules
from kedit_methods_memory.grace.method import waves
from kedit_methods_memory.grace.record import Record, Shared

ROME, OSLO, LIMA = (7,), (8, 1), (9,)


def at(*place: float) -> Tensor:
    return torch.tensor(place)


def book(eps0: float = 1.0, **rules: Any) -> Book:
    return Book(Rules(eps0=eps0, **rules))


def radii(book: Book) -> list[float]:
    return [float(radius) for radius in book.radii]


# ------------------------------------------------------------------ acceptance 3: the table of cases
def test_the_first_edit_opens_a_ball() -> None:
    made = book(eps0=2.5)
    done = made.admit(at(3, 4), ROME)
    assert (done.case, done.key, done.near, done.distance) == ("new", 0, -1, 0.0)
    assert torch.equal(made.keys, at(3, 4)[None]) and radii(made) == [2.5] and made.labels == [ROME]


@pytest.mark.parametrize("label", [ROME, OSLO])
def test_far_away_a_new_key_is_added_whatever_its_answer(label: tuple[int, ...]) -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    done = made.admit(at(0, 2.001), label)
    assert (done.case, done.key, done.near) == ("new", 1, 0) and radii(made) == [1.0, 1.0]
    assert done.distance == pytest.approx(2.001, abs=1e-7)


def test_exactly_at_both_radii_is_not_far_away() -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    assert made.admit(at(0, 2), OSLO).case == "split"
    made = book()
    made.admit(at(0, 0), ROME)
    assert made.admit(at(0, 2), ROME).case == "expand"
    beyond = float(torch.nextafter(torch.tensor(2.0), torch.tensor(3.0)))
    made = book()
    made.admit(at(0, 0), ROME)
    assert made.admit(at(0, beyond), ROME).case == "new"


def test_another_answer_nearby_splits_the_ball_in_halves() -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    done = made.admit(at(0.6, 0.8), OSLO)
    assert (done.case, done.key, done.near) == ("split", 1, 0)
    assert radii(made) == pytest.approx([0.5 - 1e-5, 0.5], abs=1e-7)
    assert made.labels == [ROME, OSLO]


def test_a_radius_shrunk_earlier_can_grow_in_a_split() -> None:
    """Published behaviour that is kept: half the distance, whatever the radius was."""
    made = book()
    made.admit(at(0, 0), ROME)
    made.admit(at(0.2, 0), OSLO)
    assert radii(made)[0] == pytest.approx(0.1 - 1e-5, abs=1e-7)
    made.admit(at(0, 1), LIMA)
    assert radii(made) == pytest.approx([0.5 - 1e-5, 0.1, 0.5], abs=1e-7)


def test_the_same_answer_nearby_widens_the_ball_just_enough() -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    done = made.admit(at(0, 1.5), ROME)
    assert (done.case, done.key) == ("expand", 0) and len(made) == 1
    assert radii(made) == [float(torch.nextafter(torch.tensor(1.5), torch.tensor(2.0)))]
    assert torch.equal(made.keys, at(0, 0)[None])
    assert made.admit(at(0, 1.5), ROME).case == "covered"


def test_slack_widens_by_a_share_of_the_querys_length() -> None:
    made = book(slack=1e-3)
    made.admit(at(0, 10), ROME)
    made.admit(at(0, 11.5), ROME)
    assert radii(made) == pytest.approx([1.5 + 11.5e-3], abs=1e-6)


def test_a_moving_key_goes_half_way() -> None:
    made = book(moving=True)
    made.admit(at(0, 0), ROME)
    done = made.admit(at(0, 1.5), ROME)
    assert done.case == "expand" and torch.equal(made.keys, at(0, 0.75)[None])
    assert radii(made) == pytest.approx([1.5], abs=2e-7)


def test_the_same_answer_within_the_ball_changes_nothing() -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    done = made.admit(at(0, 0.9), ROME)
    assert (done.case, done.key) == ("covered", 0) and radii(made) == [1.0] and len(made) == 1


# ------------------------------------------------------------------ duplicates
def test_the_same_prompt_again_is_covered_or_overwritten() -> None:
    made = book()
    made.admit(at(3, 4), ROME)
    assert made.admit(at(3, 4), ROME).case == "covered"
    done = made.admit(at(3, 4 + 4e-6), OSLO)  # rounding of a vector of length 5
    assert (done.case, done.key) == ("overwritten", 0)
    assert len(made) == 1 and made.labels == [OSLO] and radii(made) == [1.0]
    assert made.admit(at(3, 4.001), ROME).case == "split"


def test_the_original_policy_never_gives_the_new_answer() -> None:
    """The published split of a duplicate: radii [-1e-5, 0], the dead key first among equals."""
    made = book(original=True)
    made.admit(at(3, 4), ROME)
    assert made.admit(at(3, 4), OSLO).case == "split"
    assert radii(made) == pytest.approx([-1e-5, 0.0], abs=1e-9)
    assert made.admit(at(3, 4), OSLO).near == 0


def test_the_original_expands_to_the_bare_distance() -> None:
    made = book(original=True, slack=0.5)
    made.admit(at(0, 0), ROME)
    made.admit(at(0, 1.5), ROME)
    assert radii(made) == [1.5]


def test_radii_stay_above_what_rounding_would_lose() -> None:
    made = book()
    made.admit(at(0, 0), ROME)
    made.admit(at(0, 5e-5), OSLO)
    assert radii(made) == pytest.approx([1e-4, 1e-4], abs=1e-10)


# ------------------------------------------------------------------ compat: how answers are compared
def test_means_of_labels_collide() -> None:
    made = book(by_mean=True)
    made.admit(at(0, 0), (-100, 4, 6))
    assert made.admit(at(0, 1.5), (-100, 5, 5)).case == "expand"  # another answer
    assert made.admit(at(0, -1.5), (-100, -100, 4, 6)).case == "split"  # the same one after a longer prompt


def test_easyedit_holds_keys_against_each_others_answers() -> None:
    made = book(prepend=True)
    made.admit(at(0, 0), ROME)
    made.admit(at(10, 0), OSLO)
    assert made.labels == [OSLO, ROME]  # of the keys at 0 and 10
    assert made.admit(at(0, 0.5), ROME).case == "split"
    usual = book()
    usual.admit(at(0, 0), ROME)
    usual.admit(at(10, 0), OSLO)
    assert usual.admit(at(0, 0.5), ROME).case == "covered"


# ------------------------------------------------------------------ acceptance 4, 5
POINTS = st.lists(
    st.tuples(st.integers(-30, 30), st.integers(-30, 30), st.sampled_from([ROME, OSLO, LIMA])), min_size=1, max_size=14
)


def test_two_conflicting_edits_keep_their_own_balls() -> None:
    for distance in (2.0, 1.3, 0.5, 0.01, 0.001):
        made = book()
        made.admit(at(1, 1), ROME)
        made.admit(at(1 + distance, 1), OSLO)
        one, other = radii(made)
        assert one + other < distance, "the balls touch"
        assert math.isclose(one + other, distance - 1e-5, rel_tol=1e-4)


@settings(deadline=None)
@given(POINTS)
def test_there_are_never_more_keys_than_edits(points: list[tuple[int, int, tuple[int, ...]]]) -> None:
    made = book(eps0=6.0)
    admissions = [made.admit(at(x, y), label) for x, y, label in points]
    assert len(made) == sum(done.case in ("new", "split") for done in admissions) <= len(points)
    assert len(made.labels) == len(made) == len(made.radii) and bool((made.radii >= 1e-4).all())
    for done, (_, _, label) in zip(admissions[-1:], points[-1:], strict=True):
        assert made.labels[done.key] == label


@settings(deadline=None)
@given(POINTS)
def test_it_is_the_table_written_out_once_more(points: list[tuple[int, int, tuple[int, ...]]]) -> None:
    """Integers: distances are exact enough to be compared with the textbook's in double precision."""
    eps0 = 6.25
    keys: list[tuple[int, int]] = []
    eps: list[float] = []
    labels: list[tuple[int, ...]] = []
    made = book(eps0=eps0)
    for x, y, label in points:
        case = made.admit(at(x, y), label).case
        if not keys:
            expected = "new"
        else:
            distances = [math.dist((x, y), key) for key in keys]
            d = min(distances)
            j = distances.index(d)
            if abs(d - eps0 - eps[j]) < 1e-3 or abs(d - eps[j]) < 1e-3:
                return  # too near a border for two precisions to agree
            if d == 0:
                expected = "covered" if labels[j] == label else "overwritten"
                labels[j] = label
            elif d > eps0 + eps[j]:
                expected = "new"
            elif label != labels[j]:
                expected, eps[j] = "split", d / 2 - 1e-5
            elif d > eps[j]:
                expected, eps[j] = "expand", d
            else:
                expected = "covered"
        if expected in ("new", "split"):
            eps.append(eps0 if expected == "new" else d / 2)
            keys.append((x, y))
            labels.append(label)
        assert case == expected
        assert radii(made) == pytest.approx(eps, rel=1e-6, abs=1e-7)
        assert made.labels == labels


# ------------------------------------------------------------------ replay
def a_record(points: list[tuple[int, int, tuple[int, ...]]], eps0: float = 6.0) -> Record:
    """A record whose value after edit i is [i]."""
    queries = torch.tensor([[x, y] for x, y, _ in points], dtype=torch.float32)
    record, done = Record.empty(Rules(eps0=eps0), 2, 1).admitted(queries, [label for _, _, label in points])
    for number, admission in enumerate(done):
        record.values[admission.key] = record.after[number] = float(number)
    return record


def trained_on(record: Record) -> list[set[int]]:
    """For each edit those whose values its own began as, and itself: by the log, one edit after another."""
    found: list[set[int]] = []
    for number, each in enumerate(record.log):
        before = [i for i in range(number) if record.log[i].key == each.key]
        found.append({number} if each.begins or not before else found[before[-1]] | {number})
    return found


@settings(deadline=None)
@given(POINTS, st.data())
def test_without_an_edit_it_is_as_if_that_had_never_been(
    points: list[tuple[int, int, tuple[int, ...]]], data: st.DataObject
) -> None:
    if len(points) < 2:
        return
    gone = data.draw(st.integers(0, len(points) - 1))
    left, anew = a_record(points).without([gone])
    kept = [i for i in range(len(points)) if i != gone]
    fresh = a_record([points[i] for i in kept])
    assert torch.equal(left.book.keys, fresh.book.keys) and torch.equal(left.book.radii, fresh.book.radii)
    assert left.book.labels == fresh.book.labels and left.log == fresh.log and left.labels == fresh.labels
    # the value of a key is that of the last remaining edit which trained it
    assert [kept[int(number)] for number in fresh.values[:, 0]] == [int(number) for number in left.values[:, 0]]
    # what is not trained anew had all that share its value in it, and those edits come before what is
    old, new = trained_on(a_record(points)), trained_on(left)
    assert [each.edit for each in anew] == [n for n, own in enumerate(new) if {kept[i] for i in own} - old[kept[n]]]
    assert all(new[each.edit] == new[each.before] | {each.edit} for each in anew)
    same, none = a_record(points).without([])
    assert same.book.keys.equal(a_record(points).book.keys) and not none


def test_edits_that_share_a_value_only_now_are_named() -> None:
    """The third lay nearest to the second, which has another answer; without that it lies in the first one's ball."""
    record = a_record([(0, 0, ROME), (6, 0, OSLO), (5, 0, ROME), (50, 0, LIMA)])
    assert [each.case for each in record.log] == ["new", "split", "split", "new"]
    left, anew = record.without([1])
    assert [each.case for each in left.log] == ["new", "covered", "new"]
    assert anew == [Shared(edit=1, before=0)]
    # dropping one of several that shared a value all along needs nothing
    record = a_record([(0, 0, ROME), (1, 0, ROME), (2, 0, ROME)])
    assert [each.case for each in record.log] == ["new", "covered", "covered"]
    assert all(not record.without([gone])[1] for gone in range(3))


def test_waves_train_a_key_once_each() -> None:
    record = a_record([(0, 0, ROME), (50, 0, OSLO), (1, 0, ROME), (0, 0, LIMA), (51, 0, OSLO)])
    assert [admission.case for admission in record.log] == ["new", "new", "covered", "overwritten", "covered"]
    assert waves(record.log) == [[0, 1], [2, 4], [3]]
