"""MELO's database: the sheet's table of cases on prompts one can draw (acceptance 4)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kedit_methods_memory.melo.database import NONE, Admission, Database

ROME, OSLO, LIMA = (7,), (8, 1), (9,)
Spot = tuple[float, float, tuple[int, ...]]


def admit(database: Database, *spots: Spot, block: int = 0) -> tuple[Admission, ...]:
    queries = torch.tensor([[x, y] for x, y, _ in spots])
    return database.admit(queries, [label for _, _, label in spots], block)


def points(database: Database, cluster: int) -> list[list[float]]:
    found: list[list[float]] = database.clusters[cluster].points.tolist()
    return found


def radii(database: Database) -> list[float]:
    return [cluster.radius for cluster in database.clusters]


def test_in_an_empty_database_each_edit_opens_its_own_cluster() -> None:
    """Even where two of the batch are the same: they do not see each other."""
    database = Database(2.0)
    done = admit(database, (0, 0, ROME), (0.5, 0, ROME), (9, 9, OSLO), block=3)
    assert [(each.case, each.cluster, each.near) for each in done] == [("new", i, -1) for i in range(3)]
    assert radii(database) == [2.0] * 3 and [cluster.blocks for cluster in database.clusters] == [[3]] * 3
    assert [cluster.label for cluster in database.clusters] == [ROME, ROME, OSLO]


def test_far_away_a_cluster_is_opened_whatever_its_answer() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    assert [each.case for each in admit(database, (0, 2.001, ROME), (2.001, 0, OSLO), block=1)] == ["new", "new"]
    assert radii(database) == [1.0] * 3


def test_exactly_at_both_radii_is_not_far_away() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    assert admit(database, (0, 2, ROME), block=1)[0].case == "joined"
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    assert admit(database, (0, 2, OSLO), block=1)[0].case == "conflict"


def test_the_same_answer_nearby_joins_and_moves_the_centre() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    (done,) = admit(database, (0, 1.5, ROME), block=1)
    assert (done.case, done.cluster, done.block) == ("joined", 0, 1)
    (cluster,) = database.clusters
    assert cluster.centre.tolist() == [0, 0.75] and cluster.radius == 1.0  # never below that of a new one
    assert points(database, 0) == [[0, 0], [0, 1.5]] and cluster.blocks == [0, 1]
    admit(database, (0, 2.7, ROME), block=2)
    assert cluster.centre.tolist() == pytest.approx([0, 1.4]) and cluster.radius == pytest.approx(1.4)


def test_a_cluster_that_grows_holds_its_outermost_point_as_other_batches_read_it() -> None:
    database = Database(1.0, slack=1e-3)
    admit(database, (30, 40, ROME))
    admit(database, (30, 41.5, ROME), block=1)
    assert radii(database) == [1.0]
    admit(database, (30, 42.7, ROME), block=2)
    longest = math.hypot(30, 42.7)
    assert radii(database) == pytest.approx([1.4 + 1e-3 * longest], abs=1e-5)
    # where the bare distance is just within r0, the ball has to grow as well
    database = Database(1.0, slack=1e-3)
    admit(database, (30, 40, ROME))
    admit(database, (30, 41.999, ROME), block=1)
    assert radii(database) == pytest.approx([0.9995 + 1e-3 * math.hypot(30, 41.999)], abs=1e-5)


def test_the_same_prompt_and_answer_again_renews_its_points_block() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    admit(database, (0, 1.5, ROME), block=1)
    before = database.tensors()
    (done,) = admit(database, (0, 1.5, ROME), block=2)
    assert (done.case, done.cluster, done.block, done.forgotten) == ("renewed", 0, 2, 0)
    assert database.clusters[0].blocks == [0, 2]
    after = database.tensors()
    assert all(torch.equal(after[role], before[role]) for role in ("centres", "radii", "points"))


def test_another_answer_nearby_leaves_each_its_half() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    (done,) = admit(database, (0.6, 0.8, OSLO), block=1)
    assert (done.case, done.cluster, done.near, done.forgotten) == ("conflict", 1, 0, 0)
    assert radii(database) == pytest.approx([0.5 - 1e-5] * 2, abs=1e-7)
    assert sum(radii(database)) < done.distance  # acceptance 5: both still answer for their own prompt
    assert database.clusters[1].blocks == [1]


def test_points_beyond_the_smaller_ball_are_forgotten() -> None:
    database = Database(1.0)
    admit(database, (-1, 0, ROME))
    admit(database, (1, 0, ROME), block=1)  # centre 0
    admit(database, (0.1, 0, ROME), block=2)
    (cluster,) = database.clusters
    (done,) = admit(database, (1.3, 0, OSLO), block=3)
    assert (done.case, done.forgotten) == ("conflict", 2)
    assert cluster.blocks == [2] and points(database, 0) == [[pytest.approx(0.1), 0.0]]


def test_a_cluster_that_lost_all_points_keeps_its_place_without_a_block() -> None:
    database = Database(1.0)
    admit(database, (-1, 0, ROME))
    admit(database, (1, 0, ROME), block=1)
    (done,) = admit(database, (1.2, 0, OSLO), block=2)
    (cluster, _) = database.clusters
    assert done.forgotten == 2 and cluster.blocks == [NONE] and points(database, 0) == [cluster.centre.tolist()]
    assert database.tensors()["point_block"].tolist() == [NONE, 2]
    # what has no block is not forgotten a second time
    (again,) = admit(database, (0.5, 0, LIMA), block=3)
    assert again.case == "conflict" and again.forgotten == 0


def test_a_conflict_can_enlarge_a_ball_that_was_made_smaller() -> None:
    """Published behaviour that is kept: half the distance, whatever the radius was."""
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    admit(database, (0.2, 0, OSLO), block=1)
    admit(database, (0, 1, LIMA), block=2)
    assert radii(database) == pytest.approx([0.5 - 1e-5, 0.1 - 1e-5, 0.5 - 1e-5], abs=1e-7)


def test_the_same_prompt_with_another_answer_takes_the_cluster_over() -> None:
    database = Database(1.0)
    admit(database, (3, 4, ROME))
    assert admit(database, (3, 4, ROME), block=1)[0].case == "renewed"
    (done,) = admit(database, (3, 4, OSLO), block=2)
    assert (done.case, done.cluster, done.forgotten) == ("overwritten", 0, 1)
    (cluster,) = database.clusters
    assert cluster.label == OSLO and cluster.blocks == [2] and cluster.radius == 1.0


def test_radii_stay_above_what_rounding_would_lose() -> None:
    database = Database(1.0)
    admit(database, (0, 0, ROME))
    admit(database, (0, 5e-5, OSLO), block=1)
    assert radii(database) == pytest.approx([1e-4, 1e-4])


SPOTS = st.lists(
    st.tuples(st.integers(-20, 20), st.integers(-20, 20), st.sampled_from([ROME, OSLO, LIMA])), min_size=1, max_size=12
)


@settings(deadline=None)
@given(SPOTS)
def test_it_is_the_table_written_out_once_more(spots: list[tuple[int, int, tuple[int, ...]]]) -> None:
    """One edit a batch, in double precision."""
    r0 = 5.3
    made = Database(r0)

    def mean(members: list[tuple[float, float]]) -> tuple[float, float]:
        return (sum(x for x, _ in members) / len(members), sum(y for _, y in members) / len(members))

    centres: list[tuple[float, float]] = []
    eps: list[float] = []
    labels: list[tuple[int, ...]] = []
    members: list[list[tuple[float, float]]] = []
    blocks: list[list[int]] = []
    for beta, (x, y, label) in enumerate(spots):
        (done,) = admit(made, (x, y, label), block=beta)
        z = (float(x), float(y))
        distances = [math.dist(z, centre) for centre in centres]
        d = min(distances, default=math.inf)
        c = distances.index(d) if distances else -1
        if distances and (sorted(distances)[1:2] == [d] or abs(d - eps[c] - r0) < 1e-3):
            return  # too near a border for two precisions to agree
        if c < 0 or d > eps[c] + r0:
            expected, radius = "new", r0
        elif label == labels[c] and min(math.dist(z, point) for point in members[c]) < 1e-5:
            expected = "renewed"
            blocks[c][min(range(len(members[c])), key=lambda i: math.dist(z, members[c][i]))] = beta
        elif label == labels[c]:
            expected = "joined"
            members[c].append(z)
            blocks[c].append(beta)
            centres[c] = mean(members[c])
            eps[c] = max(r0, *(math.dist(point, centres[c]) for point in members[c]))
        elif d < 1e-5:
            expected, labels[c], members[c], blocks[c] = "overwritten", label, [z], [beta]
        else:
            expected, radius = "conflict", d / 2 - 1e-5
            eps[c] = radius
            gaps = [math.dist(point, centres[c]) for point in members[c]]
            if any(abs(gap - radius) < 1e-3 for gap in gaps):
                return
            inside = [i for i, gap in enumerate(gaps) if gap <= radius]
            members[c], blocks[c] = [members[c][i] for i in inside], [blocks[c][i] for i in inside]
            if not inside:
                members[c], blocks[c] = [centres[c]], [NONE]
        if expected in ("new", "conflict"):
            centres.append(z)
            eps.append(radius)
            labels.append(label)
            members.append([z])
            blocks.append([beta])
        assert done.case == expected
        assert radii(made) == pytest.approx(eps, rel=1e-5, abs=1e-6)
        assert [cluster.blocks for cluster in made.clusters] == blocks
        assert [cluster.label for cluster in made.clusters] == labels
        for cluster, centre in zip(made.clusters, centres, strict=True):
            assert cluster.centre.tolist() == pytest.approx(list(centre), abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(SPOTS)
def test_as_tensors_and_back(spots: list[tuple[int, int, tuple[int, ...]]]) -> None:
    made = Database(5.3)
    for beta, spot in enumerate(spots):
        admit(made, spot, block=beta)
    tensors = made.tensors()
    again = Database.of(5.3, tensors, [cluster.label for cluster in made.clusters])

    def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
        return all(torch.equal(one[role], other[role]) for role in one)

    assert same(again.tensors(), tensors)
    one, other = admit(made, (1, 2, ROME), block=99), admit(again, (1, 2, ROME), block=99)
    assert one == other and same(made.tensors(), again.tensors())
