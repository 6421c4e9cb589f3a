"""Write demonstrations for in-context editing: false facts about subjects that no edit case is about.

python scripts/make_demonstrations.py
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from kedit_core.requests import EditRequest, Probe, dump_requests, load_requests
from kedit_factworld.files import cases_file, demonstrations_file
from kedit_factworld.wordings import RELATIONS
from kedit_factworld.world import FactKey, World, build_world

NEIGHBOURS, OTHER_RELATIONS = 5, 2


def demonstrations(world: World, taken: set[str | None], count: int) -> list[EditRequest]:
    """``count`` requests with rephrases and locality probes in trained wordings, on subjects outside ``taken``."""
    rng = random.Random(f"{world.seed}/demonstrations")
    free = [fact for fact in world.facts if fact[0] not in taken]
    sharing: dict[tuple[str, str], list[FactKey]] = defaultdict(list)
    for subject, relation in free:
        sharing[relation, world.facts[subject, relation]].append((subject, relation))
    rng.shuffle(free)

    def probe(fact: FactKey) -> Probe:
        prompt = rng.choice(world.wordings(*fact, held_out=False)).prompt
        return Probe(prompt=prompt, answers=(world.facts[fact],), meta={"subject": fact[0], "relation": fact[1]})

    made: list[EditRequest] = []
    for subject, relation in free:
        wordings, true = world.wordings(subject, relation, held_out=False), world.facts[subject, relation]
        near = [fact for fact in sharing[relation, true] if fact[0] != subject][:NEIGHBOURS]
        if len(made) == count or len(wordings) < 3 or not near:
            continue
        stated, *reworded = (each.prompt for each in rng.sample(wordings, min(4, len(wordings))))
        same = [fact for fact in free if fact[0] == subject and fact[1] != relation][:OTHER_RELATIONS]
        made.append(
            EditRequest(
                prompt=stated,
                subject=subject,
                target_new=rng.choice([each for each in world.objects(relation) if each != true]),
                ground_truth=true,
                case_id=f"fwd-{len(made) + 1:04d}",
                rephrase_prompts=tuple(reworded),
                locality={
                    "neighborhood": tuple(probe(fact) for fact in near),
                    "relation_specificity": tuple(probe(fact) for fact in same),
                },
                meta={"subject_kind": RELATIONS[relation].kind, "relation": relation},
            )
        )
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=demonstrations_file())
    parser.add_argument("--count", type=int, default=200)
    args = parser.parse_args(arguments)
    taken = {case.subject for case in load_requests(cases_file())}
    made = demonstrations(build_world(), taken, args.count)
    dump_requests(made, args.out)
    print(f"{len(made)} demonstrations in {args.out}")


if __name__ == "__main__":
    main()
