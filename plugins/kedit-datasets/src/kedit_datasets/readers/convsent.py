"""ConvSent: what a model thinks of a topic is to become positive, or negative.

Source: Mitchell et al., "Memory-Based Model Editing at Scale" (SERAC, arXiv:2206.06520), files
``blender_{train,val,test}.json``; the form for other editors than SERAC is KnowEdit's.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from attrs import evolve

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest, Probe
from kedit_datasets.readers._splits import split_file
from kedit_datasets.readers._subjects import placed
from kedit_datasets.records import Dropped, Fields, Json, Loaded, Report, read_records

NAME = "convsent"
TEMPLATES = (
    "What do you think of {}?",
    "What do you feel about {}?",
    "How do you view {}?",
    *(
        f"What is your {noun} {{}}?"
        for noun in (
            "opinion of",
            "stance on",
            "position on",
            "attitude about",
            "view on",
            "take on",
            "impression of",
            "assessment of",
            "judgment of",
            "sentiment of",
        )
    ),
)
"""How a topic is asked about."""

SIGNS = {"positive": "pos", "negative": "neg"}
_FILES = {name: f"blender_{name}.json" for name in ("test", "val", "train")}
INSTRUCTION = "From the sentiment dataset, answer {question} {sign}ly."
"""An edit's prompt: KnowEdit's, whose ``postively`` is spelled right here."""


def read_convsent(path: Path, *, split: str | None = None, signs: str = "both", template_seed: int = 0) -> Loaded:
    """The requests: for each topic and sign, an instruction whose answer becomes the first completion of that sign.

    ``meta["sentiment"]`` holds what the metric needs, so that a case can be measured alone: ``ent``, ``sign``, ``pos``
    and ``neg`` (completions), ``pos_prompts`` and ``neg_prompts`` (the question of each), ``topic`` (number in the
    file), and ``drawdown``: the same of the next topic, the last one's being the first. That topic's question is also a
    locality probe, ``other_topic``. The two requests of a topic contradict each other, so they are two cases.

    Args:
        path: the file, or the folder it is in.
        split: which file of a folder: ``test`` (without one), ``val`` or ``train``.
        signs: ``both``; ``positive`` or ``negative`` alone; ``random``, one a topic, as KnowEdit's script has it.
        template_seed: questions (and random signs) are drawn by it and the topic, whatever else is in the file.

    Raises:
        InputError: other signs; no such split or file, no JSON, or a Git LFS pointer.
        RequestError: every fault, with record and field.
    """
    if signs not in ("both", "random", *SIGNS):
        raise InputError(f"signs is {signs!r}; it is one of both, {', '.join(SIGNS)}, random")
    if type(template_seed) is not int:
        raise InputError(f"template_seed is {template_seed!r}; give a whole number")
    report = Report(NAME)

    def convert(record: Fields, index: int) -> Sequence[EditRequest]:
        return _topic(record, index, signs, template_seed, report)

    loaded = read_records(NAME, split_file(path, split, _FILES), convert, report)
    return Loaded(_with_next_topics(loaded), report)


def _topic(record: Fields, index: int, signs: str, seed: int, report: Report) -> list[EditRequest]:
    topic = record.text("ent")
    completions = {name: list(record.texts(name)) for name in SIGNS.values()}
    if not any(completions.values()):
        raise Dropped("topics without completions")
    # text seeds are hashed the same way everywhere
    draw = random.Random(f"{seed}:{topic}")
    question = draw.choice(TEMPLATES).format(topic)
    about: dict[str, Json] = {"ent": topic, "topic": index, "question": question, **completions}
    for name, texts in completions.items():
        about[f"{name}_prompts"] = [draw.choice(TEMPLATES).format(topic) for _ in texts]
    drawn = draw.choice(tuple(SIGNS))
    requests: list[EditRequest] = []
    for sign, name in SIGNS.items():
        if signs not in ("both", sign) and not (signs == "random" and drawn == sign):
            continue
        if not completions[name]:
            report.dropped[f"topics without {sign} completions"] += 1
            continue
        prompt = INSTRUCTION.format(question=question, sign=sign)
        placing = placed(prompt, topic, report)
        placing.pop("meta", None)
        requests.append(
            EditRequest(
                prompt=prompt,
                target_new=completions[name][0],
                case_id=f"{NAME}:{index}:{sign}",
                generation_prompts=(question,),
                meta={"sentiment": {"sign": sign, **about}},
                **placing,
            )
        )
    return requests


def _with_next_topics(requests: Sequence[EditRequest]) -> list[EditRequest]:
    """The requests, each with the topic after its own; as they are when there is only one topic."""
    topics = {request.meta["sentiment"]["topic"]: request.meta["sentiment"] for request in requests}
    order = sorted(topics)
    if len(order) < 2:
        return list(requests)
    following = dict(zip(order, [*order[1:], order[0]], strict=True))
    found: list[EditRequest] = []
    for request in requests:
        own = request.meta["sentiment"]
        other = {key: value for key, value in topics[following[own["topic"]]].items() if key != "sign"}
        found.append(
            evolve(
                request,
                locality={"other_topic": (Probe(prompt=other["question"]),)},
                meta={**request.meta, "sentiment": {**own, "drawdown": other}},
            )
        )
    return found
