"""FactWorld: a small, seeded world of facts to train and edit tiny language models on.

Half of it is real geography; the other half, people and companies, is drawn from a seeded generator and refers to the
real half, so that two-hop questions have definite answers. Three of every fact's ten wordings are held out of training,
at random per fact, so they are unseen for that fact although each wording is seen with other subjects. Two-hop
sentences are in training for 70 % of the people and of the companies only.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from attrs import frozen

from kedit_factworld import geography, names
from kedit_factworld.wordings import RELATIONS, TWO_HOPS, Hop

FactKey: TypeAlias = tuple[str, str]
_Add: TypeAlias = Callable[[str, str, Mapping[str, str]], None]

SEED = 20240
PEOPLE = 220
COMPANIES = 40
HELD_OUT_WORDINGS = 3
TWO_HOP_HELD_OUT = 0.3


@frozen
class Statement:
    """A prompt and the object that completes it, no space before it; ``relation`` is "first>second" for two hops."""

    subject: str
    relation: str
    prompt: str
    object: str

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.object}."


@frozen(kw_only=True)
class World:
    """All facts, and which of their wordings belong to the training corpus.

    Attributes:
        seed: what the world was drawn with.
        facts: (subject, relation) -> object, in a fixed order.
        kinds: subject -> ``country``, ``city``, ``person`` or ``company``, in a fixed order.
        held_out: (subject, relation) -> positions in ``Relation.wordings`` that training never shows.
        two_hop_held_out: subjects without any two-hop sentence in training.
    """

    seed: int
    facts: Mapping[FactKey, str]
    kinds: Mapping[str, str]
    held_out: Mapping[FactKey, frozenset[int]]
    two_hop_held_out: frozenset[str]

    def subjects(self, kind: str) -> list[str]:
        """Subjects of one kind, in order."""
        return [subject for subject, its_kind in self.kinds.items() if its_kind == kind]

    def objects(self, relation: str) -> list[str]:
        """Distinct objects of a relation, sorted."""
        return sorted({object_ for (_, its_relation), object_ in self.facts.items() if its_relation == relation})

    def wordings(self, subject: str, relation: str, *, held_out: bool) -> list[Statement]:
        """One fact in all its held-out, or all its trained, wordings."""
        object_, hidden = self.facts[subject, relation], self.held_out[subject, relation]
        return [
            Statement(subject, relation, wording.format(subject), object_)
            for position, wording in enumerate(RELATIONS[relation].wordings)
            if (position in hidden) == held_out
        ]

    def statements(self, *, held_out: bool) -> Iterator[Statement]:
        """Every fact in all its held-out, or all its trained, wordings."""
        for subject, relation in self.facts:
            yield from self.wordings(subject, relation, held_out=held_out)

    def two_hop_answer(self, subject: str, hop: Hop) -> str | None:
        """The object two relations away from the subject, or None."""
        middle = self.facts.get((subject, hop[0]))
        return None if middle is None else self.facts.get((middle, hop[1]))

    def two_hop_statements(self, *, held_out: bool) -> Iterator[Statement]:
        """Two-hop statements about the subjects that are held out of (or are in) two-hop training."""
        for subject in self.kinds:
            if (subject in self.two_hop_held_out) != held_out:
                continue
            for hop, wordings in TWO_HOPS.items():
                answer = self.two_hop_answer(subject, hop)
                if answer is not None:
                    for wording in wordings:
                        yield Statement(subject, ">".join(hop), wording.format(subject), answer)


def build_world(seed: int = SEED, people: int = PEOPLE, companies: int = COMPANIES) -> World:
    """Build the world; equal arguments give an equal world, on any machine."""
    rng = random.Random(seed)
    kinds: dict[str, str] = {}
    facts: dict[FactKey, str] = {}

    def add(kind: str, subject: str, objects: Mapping[str, str]) -> None:
        kinds[subject] = kind
        facts.update({(subject, relation): object_ for relation, object_ in objects.items()})

    for country in geography.countries():
        official = {"official_language": country.language, "currency": country.currency}
        add("country", country.name, {"capital": country.capital, "continent": country.continent, **official})
    for city, its_country in geography.home_cities().items():
        add("city", city, {"city_country": its_country})
    _add_people_and_companies(rng, people, companies, add)

    held_out = {key: frozenset(rng.sample(range(10), HELD_OUT_WORDINGS)) for key in facts}
    two_hop_held_out: set[str] = set()
    for kind in ("person", "company"):
        subjects = [subject for subject, its_kind in kinds.items() if its_kind == kind]
        two_hop_held_out.update(rng.sample(subjects, round(len(subjects) * TWO_HOP_HELD_OUT)))
    return World(seed=seed, facts=facts, kinds=kinds, held_out=held_out, two_hop_held_out=frozenset(two_hop_held_out))


def _add_people_and_companies(rng: random.Random, people: int, companies: int, add: _Add) -> None:
    """Draw the invented half; the order of the draws is what makes the world."""
    cities = sorted(geography.home_cities())
    pairs = [
        f"{first} {last}" for first in names.entries(names.FIRST_NAMES) for last in names.entries(names.LAST_NAMES)
    ]
    persons = rng.sample(pairs, people)
    roots, suffixes = names.entries(names.COMPANY_ROOTS), names.entries(names.COMPANY_SUFFIXES)
    firms = rng.sample([f"{root} {suffix}" for root in roots for suffix in suffixes], companies)
    choices: dict[str, Sequence[str]] = {
        "citizenship": geography.HOME_COUNTRIES,
        "birth_city": cities,
        "profession": names.entries(names.PROFESSIONS),
        "employer": firms,
        "native_language": names.entries(names.LANGUAGES),
        "instrument": names.entries(names.INSTRUMENTS),
    }
    for person in persons:
        add("person", person, {relation: rng.choice(options) for relation, options in choices.items()})
    choices = {"headquarters": cities, "industry": names.entries(names.INDUSTRIES), "founder": persons}
    for firm in firms:
        add("company", firm, {relation: rng.choice(options) for relation, options in choices.items()})
