"""The training corpus: pass after pass, each says every fact twice in wordings drawn from the trained ones.

A pass has about 45,000 words in documents of one to six sentences. Passes differ, and each follows from the world's
seed and its own number alone.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator

from kedit_factworld.world import Statement, World, build_world

PASSES = 4
REVISION = "sha256:6f60eb385bbc595fdeeb0cb4b148150810a00507acadd6cf9e2f6ddc435d478f"


def corpus() -> Iterator[str]:
    """The documents of the first :data:`PASSES` passes (5,510, 221,161 tokens); :data:`REVISION` is their digest."""
    world = build_world()
    for index in range(PASSES):
        yield from pass_documents(world, index)


def revision_of(documents: Iterable[str]) -> str:
    """The digest of a corpus: SHA-256 of its documents in UTF-8, each followed by a line feed."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(document.encode() + b"\n")
    return f"sha256:{digest.hexdigest()}"


def pass_documents(world: World, index: int) -> list[str]:
    """The documents of one pass as text."""
    return [" ".join(statement.text for statement in group) for group in pass_groups(world, index)]


def pass_groups(world: World, index: int) -> list[list[Statement]]:
    """The statements of one pass grouped into documents: half the subjects get one of their own, the rest is mixed."""
    rng = random.Random(f"{world.seed}/{index}/documents")
    by_subject, mixed = pass_statements(world, index)
    groups = []
    for statements in by_subject.values():
        if len(statements) > 1 and rng.random() < 0.5:
            rng.shuffle(statements)
            groups.append(statements)
        else:
            mixed += statements
    rng.shuffle(mixed)
    while mixed:
        size = rng.randint(1, 6)
        groups.append(mixed[:size])
        del mixed[:size]
    rng.shuffle(groups)
    return groups


def pass_statements(world: World, index: int) -> tuple[dict[str, list[Statement]], list[Statement]]:
    """What one pass says: (subject -> statements to say together, statements to mix freely).

    Every fact comes once in each of the two, every trained two-hop fact once in the second.
    """
    rng = random.Random(f"{world.seed}/{index}")
    by_subject: dict[str, list[Statement]] = defaultdict(list)
    mixed: list[Statement] = []
    for subject, relation in world.facts:
        first, second = rng.sample(world.wordings(subject, relation, held_out=False), 2)
        by_subject[subject].append(first)
        mixed.append(second)
    two_hops: dict[tuple[str, str], list[Statement]] = defaultdict(list)
    for statement in world.two_hop_statements(held_out=False):
        two_hops[statement.subject, statement.relation].append(statement)
    return by_subject, mixed + [rng.choice(wordings) for wordings in two_hops.values()]
