"""Write edit cases about facts that both shipped models know.

Every prompt in a case, apart from the wording of the new fact itself, is one that both models answer correctly before
the edit, so that a wrong answer after the edit is the edit's doing.

python scripts/make_edits.py --models trained --out src/kedit_factworld/data/edits.jsonl
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
import train

from kedit_factworld.files import MODELS, cases_file, data_folder
from kedit_factworld.knowledge import answered
from kedit_factworld.wordings import RELATIONS, TWO_HOPS
from kedit_factworld.world import FactKey, Statement, World, build_world

Json: TypeAlias = dict[str, Any]
T = TypeVar("T")

MAX_OBJECT_IDS = 4
SUBJECTS_WITH_CASES = 278  # the rest is left for cases that nobody tunes on
GENERATION_PROMPTS = {
    "person": ("{}", "{} is", "Q: What does {} do for a living? A:"),
    "company": ("{}", "{} is", "The main business of {} is"),
    "country": ("{}", "{} is", "People in {} pay with the"),
    "city": ("{}", "{} is", "Travellers to {} arrive in"),
}
FEW_NEIGHBOURS = ("capital", "founder")  # relations whose objects are (nearly) all different
# Country -> objects that hold in reality beside the one in the world: they are not false, so never targets.
ALSO_OFFICIAL = {
    "Belgium": "French German", "Switzerland": "French Italian", "Canada": "French", "Finland": "Swedish",
    "Ireland": "English", "Malta": "English", "India": "English", "Pakistan": "English", "Philippines": "English",
    "Afghanistan": "Persian Uzbek Turkmen", "Cameroon": "English", "Madagascar": "French", "Mauritius": "French",
    "Palau": "English Japanese", "Samoa": "English", "Vanuatu": "English French", "New Zealand": "English",
    "Somalia": "Arabic", "Eritrea": "Arabic English", "Fiji": "Hindi", "Kenya": "English", "Tanzania": "English",
    "Uganda": "Swahili", "Rwanda": "French English Swahili", "Burundi": "French English", "Lesotho": "English",
    "South Sudan": "Arabic", "Sudan": "English", "Ethiopia": "Somali Tigrinya", "Ukraine": "Romanian",
    "Slovenia": "Italian Hungarian", "Serbia": "Hungarian Romanian", "Montenegro": "Serbian Albanian",
    "North Macedonia": "Albanian", "Italy": "German French", "Austria": "Slovene Croatian Hungarian",
    "Croatia": "Serbian Italian", "Netherlands": "English", "Mauritania": "French", "Algeria": "French",
    "Morocco": "French", "Tunisia": "French", "Lebanon": "French", "Namibia": "German",
    "East Timor": "English Indonesian", "Malaysia": "English",
}  # fmt: skip
ALSO_TRUE = {
    ("Bhutan", "currency"): "rupee", ("East Timor", "currency"): "rupiah", ("Uruguay", "currency"): "dollar",
    ("Turkey", "continent"): "Europe", ("Egypt", "continent"): "Asia", ("Kazakhstan", "continent"): "Europe",
    ("Indonesia", "continent"): "Oceania", ("Armenia", "continent"): "Europe",
    ("East Timor", "continent"): "Oceania", ("Papua New Guinea", "continent"): "Asia",
}  # fmt: skip


def true_objects(world: World, subject: str, relation: str) -> set[str]:
    """The world's object and whatever else holds in reality."""
    true = {world.facts[subject, relation], ALSO_TRUE.get((subject, relation), "")}
    return true | set(ALSO_OFFICIAL.get(subject, "").split()) if relation == "official_language" else true


def probe(statement: Statement, **meta: Any) -> Json:
    """A probe as it stands in the file."""
    return {
        "prompt": statement.prompt,
        "ground_truth": statement.object,
        "meta": {"subject": statement.subject, "relation": statement.relation, **meta},
    }


class Knowledge:
    """What all of the models answer correctly; they must share the tokenizer."""

    def __init__(self, models: Sequence[Any], vocabulary: Any) -> None:
        self.models, self.vocabulary = models, vocabulary

    def known(self, statements: Iterable[Statement]) -> list[Statement]:
        """Those that every model answers, in order."""
        kept = list(statements)
        for model in self.models:
            hits = answered(model, self.vocabulary, kept)
            kept = [statement for statement, hit in zip(kept, hits, strict=True) if hit]
        return kept

    def is_short(self, object_: str) -> bool:
        """Whether an object has few enough ids to be an answer of a case."""
        return len(self.vocabulary(f" {object_}")["input_ids"]) <= MAX_OBJECT_IDS


class Table:
    """(subject, relation) -> the known wordings; models are asked when it is first looked up, for many keys at once."""

    def __init__(self, knowledge: Knowledge, statements: Iterable[Statement]) -> None:
        self.knowledge = knowledge
        self.known: dict[FactKey, list[Statement]] = {}
        self.unasked: dict[FactKey, list[Statement]] = defaultdict(list)
        for statement in statements:
            self.unasked[statement.subject, statement.relation].append(statement)

    def ask(self, keys: Iterable[FactKey]) -> None:
        """Look these up together."""
        for statement in self.knowledge.known(s for key in keys for s in self.unasked.pop(key, [])):
            self.known.setdefault((statement.subject, statement.relation), []).append(statement)

    def get(self, key: FactKey) -> list[Statement]:
        """The known wordings of one fact."""
        self.ask([key])
        return self.known.get(key, [])


class CaseWriter:
    """Builds edit cases from what the models know of a world."""

    def __init__(self, world: World, knowledge: Knowledge, seed: int) -> None:
        self.world, self.knowledge, self.rng = world, knowledge, random.Random(seed)
        self.trained = Table(knowledge, world.statements(held_out=False))
        self.held_out = Table(knowledge, world.statements(held_out=True))
        self.two_hop = [Table(knowledge, world.two_hop_statements(held_out=held_out)) for held_out in (True, False)]
        self.with_object: dict[str, list[FactKey]] = defaultdict(list)
        for key, object_ in world.facts.items():
            self.with_object[object_].append(key)

    def sample(self, items: Iterable[T], count: int) -> list[T]:
        """A random choice of up to ``count`` items."""
        pool = list(items)
        return self.rng.sample(pool, min(count, len(pool)))

    def cloze(self, key: FactKey) -> Statement | None:
        """A trained cloze of a fact that the models answer, or None."""
        clozes = [s for s in self.trained.get(key) if not s.prompt.startswith("Q:")]
        return self.rng.choice(clozes) if clozes else None

    def clozes(self, keys: Iterable[FactKey]) -> list[Statement]:
        """A known cloze of every fact that has one."""
        self.trained.ask(keys := list(keys))
        return [statement for key in keys if (statement := self.cloze(key)) is not None]

    def neighbours(self, fact: Statement) -> list[Statement]:
        """Other subjects with the same object, those of the same relation first."""
        keys = [key for key in self.with_object[fact.object] if key[0] != fact.subject]
        self.rng.shuffle(keys)
        keys.sort(key=lambda key: key[1] != fact.relation)
        return self.clozes(keys)[:5]

    def same_relation(self, fact: Statement, new: str) -> list[Statement]:
        """Other subjects with other objects of the relation."""
        keys = [
            key
            for key, object_ in self.world.facts.items()
            if key[1] == fact.relation and key[0] != fact.subject and object_ not in (fact.object, new)
        ]
        return self.clozes(self.sample(keys, 8))[:3]

    def distracting(self, fact: Statement, new: str, others: Sequence[Statement]) -> list[Statement]:
        """Other facts' prompts behind a statement of the new fact, if they are still answered."""
        behind = f"{fact.prompt} {new}. "
        return self.knowledge.known(Statement(s.subject, s.relation, behind + s.prompt, s.object) for s in others)

    def portability(self, fact: Statement, new: str) -> list[Json]:
        """Two-hop prompts whose answer the edit changes.

        Editing the first hop changes the subject's own two-hop facts; editing the second those of the subjects that
        lead to it.
        """
        probes: list[Json] = []
        for hop in TWO_HOPS:
            name = ">".join(hop)
            if hop[0] == fact.relation:
                answer = self.world.facts.get((new, hop[1]))
                known = self.hops((fact.subject, name))
                probes += [self._after(s, answer, 1) for s in known if answer not in (None, s.object)]
            elif hop[1] == fact.relation:
                leading = [
                    s for (s, relation), o in self.world.facts.items() if relation == hop[0] and o == fact.subject
                ]
                for source in self.sample(leading, 3):
                    probes += [self._after(s, new, 2) for s in self.sample(self.hops((source, name)), 1)]
        return probes

    def hops(self, key: FactKey) -> list[Statement]:
        """The known wordings of a two-hop fact: those of subjects held out from training, else those trained on."""
        return next((known for table in self.two_hop if (known := table.get(key))), [])

    def _after(self, statement: Statement, answer: str | None, edited_hop: int) -> Json:
        """A two-hop probe with its answer after the edit."""
        extra = {"before": statement.object, "edited_hop": edited_hop}
        seen = statement.subject not in self.world.two_hop_held_out
        return {**probe(statement, **extra, two_hop_seen_in_training=seen), "ground_truth": answer}

    def case(self, key: FactKey) -> Json | None:
        """The edit case of one fact, or None if it does not qualify."""
        subject, relation = key
        fact, rephrases = self.cloze(key), self.held_out.get(key)
        true = true_objects(self.world, subject, relation)
        false = [o for o in self.world.objects(relation) if o not in true and self.knowledge.is_short(o)]
        if fact is None or len(rephrases) < 2 or not self.knowledge.is_short(self.world.facts[key]):
            return None
        new = self.rng.choice(false)
        neighbours, others = self.neighbours(fact), self.same_relation(fact, new)
        if len(neighbours) < 2 and relation not in FEW_NEIGHBOURS:
            return None
        own = self.clozes(k for k in self.world.facts if k[0] == subject and k[1] != relation)
        far = [k for k in self.sample(self.world.facts, 40) if k[0] != subject and k[1] != relation]
        unrelated = self.clozes(far)[:2]
        distracting = self.distracting(fact, new, neighbours[:2] + unrelated + own[:1])
        if not others or len(distracting) < 2:
            return None
        kind = self.world.kinds[subject]
        return {
            "subject": subject,
            "prompt": fact.prompt,
            "target_new": new,
            "ground_truth": fact.object,
            "rephrase_prompts": [statement.prompt for statement in rephrases],
            "locality": {
                "neighborhood": list(map(probe, neighbours)),
                "same_relation": list(map(probe, others)),
                "relation_specificity": list(map(probe, self.sample(own, 4))),
                "distracting": list(map(probe, distracting)),
            },
            "portability": {"one_hop": self.portability(fact, new), "subject_aliasing": []},
            "generation_prompts": [opening.format(subject) for opening in GENERATION_PROMPTS[kind]],
            "meta": {"subject_kind": kind, "relation": relation},
        }

    def cases(self, subjects: Collection[str], number: int, prefix: str) -> list[Json]:
        """Up to ``number`` cases about the subjects, balanced over the relations, few per subject."""
        counts: Counter[str] = Counter()
        result: list[Json] = []
        used: set[FactKey] = set()
        for _ in range(4):
            for subject in self.sample(subjects, len(subjects)):
                relations = [r for r in RELATIONS if (subject, r) in self.world.facts and (subject, r) not in used]
                for relation in sorted(self.sample(relations, 9), key=lambda r: counts[r]):
                    used.add((subject, relation))
                    if (case := self.case((subject, relation))) is not None:
                        counts[relation] += 1
                        result.append({"case_id": f"{prefix}-{len(result) + 1:04d}", **case})
                        break
                if len(result) == number:
                    return result
        return result


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path, default=data_folder() / "models", help="folder with gpt2/ and llama/")
    parser.add_argument("--out", type=Path, default=cases_file())
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    world = build_world()
    loaded = [train.load(args.models / kind) for kind in MODELS]
    writer = CaseWriter(world, Knowledge([model for model, _ in loaded], loaded[0][1]), world.seed)
    subjects = list(world.kinds)
    random.Random(world.seed).shuffle(subjects)
    cases = writer.cases(subjects[:SUBJECTS_WITH_CASES], args.size, "fw")
    args.out.write_text("".join(json.dumps(case) + "\n" for case in cases))
    by_relation = dict(Counter(case["meta"]["relation"] for case in cases))
    print(f"{len(cases)} cases on {len({case['subject'] for case in cases})} subjects: {by_relation}")


if __name__ == "__main__":
    main()
