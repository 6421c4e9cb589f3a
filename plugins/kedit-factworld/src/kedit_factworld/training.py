"""Training cases: as many edits as an editor needs to learn from, about subjects that no evaluation case edits.

Every answer is known by construction: the probes' from the world, the new one because it is another object of the
relation. Nothing is asked of a model, and no wording that was held out of training is used.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe, load_requests
from kedit_factworld import files
from kedit_factworld.wordings import RELATIONS
from kedit_factworld.world import FactKey, Statement, World, build_world

PARTS = ("all", "train", "validation")
OPTIONS = ("count", "seed", "part", "relations", "without", "probed")
COUNT = 2000
VALIDATION_SHARE = 5  # one subject in so many is the validation's
MAX_REPHRASES, MAX_PROBES = 3, 3


def training_cases(
    count: int = COUNT,
    seed: int = 0,
    part: str = "all",
    relations: str | Sequence[str] | None = None,
    without: str | Sequence[str] | None = None,
    probed: bool = True,
) -> list[EditRequest]:
    """``count`` different edits with rephrases and locality probes in trained wordings; equal arguments, equal cases.

    Subjects come in turn, so that each has as many cases as any other (one at least, for ``count`` of 197 or more).

    Args:
        count: how many.
        seed: what facts, wordings, false objects and probes are drawn with.
        part: ``train`` and ``validation`` have no subject in common, neither edited nor probed, whatever the seeds;
            ``validation`` has every fifth of each kind. ``all`` has both.
        relations: only these (a list, or names between commas), edited or probed.
        without: all but these.
        probed: False leaves out the facts (615 of 848) that a probe of an evaluation case asks for.

    Raises:
        InputError: a count below 1, or more than there are; an unknown part or relation; nothing left.
    """
    chosen = _relations(relations, without)
    if not isinstance(count, int) or count < 1:
        raise InputError(f"count is {count!r}; ask for at least one training case")
    if part not in PARTS:
        raise InputError(f"there is no part {part!r} of the training cases; it is one of {', '.join(PARTS)}")
    world = build_world()
    drawing = _Drawing.of(world, _free_facts(world, part, chosen, probed), random.Random(f"{world.seed}/train/{seed}"))
    if not drawing.facts:
        raise InputError("these options leave no fact to make training cases of; name more relations, or probed=true")
    prefix = "fwv" if part == "validation" else "fwt"
    made: list[EditRequest] = []
    for case in drawing.cases(f"{prefix}{seed}"):
        made.append(case)
        if len(made) == count:
            return made
    raise InputError(f"{count} different training cases were asked for, and these options give {len(made)}; ask fewer")


def read_training_cases(path: Path | None, **options: Any) -> list[EditRequest]:
    """The dataset's reader. Raises InputError for a path (the cases are made, not read), else as the cases' maker."""
    if path is not None:
        raise InputError(f"factworld_training is made, not read from {path}; leave the path out")
    return training_cases(**options)


def free_subjects(world: World) -> list[str]:
    """The 197 subjects that no evaluation case edits, in the world's order."""
    taken = {case.subject for case in load_requests(files.cases_file())}
    return [subject for subject in world.kinds if subject not in taken]


def _relations(relations: str | Sequence[str] | None, without: str | Sequence[str] | None) -> frozenset[str]:
    """The relations that the options leave. Raises InputError for one that there is not."""
    wanted, unwanted = _names(relations), _names(without)
    if unknown := [name for name in (*wanted, *unwanted) if name not in RELATIONS]:
        raise InputError(f"FactWorld has no relation {unknown[0]!r}; it has {', '.join(RELATIONS)}")
    return frozenset(wanted or RELATIONS) - frozenset(unwanted)


def _names(given: str | Sequence[str] | None) -> list[str]:
    texts = given.split(",") if isinstance(given, str) else given or ()
    return [text.strip() for text in texts if text.strip()]


def _free_facts(world: World, part: str, relations: frozenset[str], probed: bool) -> list[FactKey]:
    """The facts that cases of a part may edit and probe, in the world's order."""
    subjects = _part(world, part)
    asked = frozenset() if probed else frozenset(_probed_facts())
    return [key for key in world.facts if key[0] in subjects and key[1] in relations and key not in asked]


def _part(world: World, part: str) -> frozenset[str]:
    """The free subjects of a part: the split follows from the world alone, and is even over the kinds."""
    by_kind: dict[str, list[str]] = defaultdict(list)
    for subject in free_subjects(world):
        by_kind[world.kinds[subject]].append(subject)
    kept: list[str] = []
    for kind, subjects in by_kind.items():
        random.Random(f"{world.seed}/split/{kind}").shuffle(subjects)
        held = subjects[::VALIDATION_SHARE]
        kept += subjects if part == "all" else held if part == "validation" else [s for s in subjects if s not in held]
    return frozenset(kept)


def _probed_facts() -> Iterator[FactKey]:
    for case in load_requests(files.cases_file()):
        for group in (*case.locality.values(), *case.portability.values()):
            yield from ((probe.meta["subject"], probe.meta["relation"]) for probe in group)


@frozen
class _Drawing:
    """Draws cases from some facts of a world.

    ``by_subject``: subject -> its facts; ``by_relation``: relation -> its facts; ``objects``: relation -> its objects.
    """

    world: World
    facts: Sequence[FactKey]
    by_subject: Mapping[str, Sequence[FactKey]]
    by_relation: Mapping[str, Sequence[FactKey]]
    objects: Mapping[str, Sequence[str]]
    rng: random.Random

    @classmethod
    def of(cls, world: World, facts: Sequence[FactKey], rng: random.Random) -> _Drawing:
        by_subject: dict[str, list[FactKey]] = defaultdict(list)
        by_relation: dict[str, list[FactKey]] = defaultdict(list)
        for key in facts:
            by_subject[key[0]].append(key)
            by_relation[key[1]].append(key)
        objects = {relation: world.objects(relation) for relation in by_relation}
        return cls(world, facts, by_subject, by_relation, objects, rng)

    def cases(self, prefix: str) -> Iterator[EditRequest]:
        """Different cases, subject after subject in turn, until every wording has had every false object."""
        left: dict[FactKey, list[tuple[Statement, str]]] = {}
        subjects = {subject: list(facts) for subject, facts in self.by_subject.items()}
        number = 0
        while subjects:
            for subject in self.rng.sample(list(subjects), len(subjects)):
                key = self.rng.choice(subjects[subject])
                if key not in left:
                    left[key] = self._edits(key)
                stated, new = left[key].pop()
                number += 1
                yield self._case(key, stated, new, f"{prefix}-{number:05d}")
                if not left[key]:
                    subjects[subject].remove(key)
            subjects = {subject: facts for subject, facts in subjects.items() if facts}

    def _edits(self, key: FactKey) -> list[tuple[Statement, str]]:
        """Each wording of a fact with each false object, in random order."""
        false = [object_ for object_ in self.objects[key[1]] if object_ != self.world.facts[key]]
        edits = [(stated, new) for stated in self.world.wordings(*key, held_out=False) for new in false]
        self.rng.shuffle(edits)
        return edits

    def _case(self, key: FactKey, stated: Statement, new: str, case_id: str) -> EditRequest:
        subject, relation = key
        true = self.world.facts[key]
        reworded = [each for each in self.world.wordings(*key, held_out=False) if each != stated]
        others = [other for other in self.by_relation[relation] if other[0] != subject]
        locality = {
            "neighborhood": [other for other in others if self.world.facts[other] == true],
            "same_relation": [other for other in others if self.world.facts[other] not in (true, new)],
            "relation_specificity": [own for own in self.by_subject[subject] if own != key],
        }
        return EditRequest(
            prompt=stated.prompt,
            subject=subject,
            target_new=new,
            ground_truth=true,
            case_id=case_id,
            rephrase_prompts=tuple(statement.prompt for statement in self._sample(reworded, MAX_REPHRASES)),
            locality={name: tuple(map(self._probe, self._sample(keys, MAX_PROBES))) for name, keys in locality.items()},
            meta={"subject_kind": RELATIONS[relation].kind, "relation": relation},
        )

    def _probe(self, key: FactKey) -> Probe:
        asked: Statement = self.rng.choice(self.world.wordings(*key, held_out=False))
        return Probe(prompt=asked.prompt, answers=(asked.object,), meta={"subject": key[0], "relation": key[1]})

    def _sample(self, items: Sequence[Any], most: int) -> list[Any]:
        """Up to ``most`` of them, in random order."""
        return self.rng.sample(items, min(most, len(items)))
