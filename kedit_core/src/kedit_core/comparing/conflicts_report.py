"""What :func:`kedit_core.comparing.conflicting.conflicts` found, and how it is told."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from attrs import asdict, frozen

from kedit_core.comparing.comparison import Overlap
from kedit_core.comparing.conflicts_facts import FactConflicts, SharedPrompt

Effect: TypeAlias = Literal[
    "add up",
    "cancel",
    "share inputs",
    "share outputs",
    "lie apart",
    "replaced",
    "on a replaced weight",
    "not measured",
]

_WORST_FIRST: tuple[Effect, ...] = (
    "replaced",
    "cancel",
    "add up",
    "on a replaced weight",
    "share inputs",
    "not measured",
    "share outputs",
    "lie apart",
)
_HARMLESS: tuple[Effect, ...] = ("share outputs", "lie apart")
_SHOWN = 60


@frozen(kw_only=True)
class WeightMeeting:
    """A weight that two patches change.

    Attributes:
        effect: what the changes do together; :mod:`kedit_core.comparing.conflicting` says what each word means.
        cosine, columns, rows: as in :class:`kedit_core.comparing.comparison.Pair`; None where not measured.
    """

    place: str
    effect: Effect
    cosine: float | None = None
    columns: Overlap | None = None
    rows: Overlap | None = None


@frozen(kw_only=True)
class Meeting:
    """Two module operations at one module, or one within the other's: the modules and the kinds."""

    places: tuple[str, str]
    kinds: tuple[str, str]


@frozen(kw_only=True)
class PatchPair:
    """Two patches by their numbers (from 0) in the order given, the first below the second.

    Attributes:
        names: of the two.
        facts: what they say of the same prompts and subjects.
        weights: that both change.
        modules: where both act.
        routers: kinds of both, when both have routers.
        parent: the second was made on top of the first.
        upside_down: the first was made on top of the second, so it must stand above it.
    """

    first: int
    second: int
    names: tuple[str, str]
    facts: FactConflicts
    weights: tuple[WeightMeeting, ...] = ()
    modules: tuple[Meeting, ...] = ()
    routers: tuple[str, str] | None = None
    parent: bool = False
    upside_down: bool = False

    @property
    def share_places(self) -> bool:
        """Whether both change a weight, act at a module, or route."""
        return bool(self.weights or self.modules or self.routers)

    @property
    def share_facts(self) -> bool:
        """Whether they contradict one another, or edit the same prompts to the same targets."""
        facts = self.facts
        return bool(facts.contradictions or facts.duplicates) or facts.known == "equal hashes"

    @property
    def verdict(self) -> str:
        """The pair in one line."""
        told = [*self._of_facts(), *self._of_order(), *self._of_places()]
        if not told:
            told = ["nothing in common: no weight, no module, no prompt"]
        if self.facts.known == "private":
            told.append("facts not compared, since they are private")
        return f"{self.names[0]} and {self.names[1]}: {'; '.join(told)}"

    def _of_facts(self) -> list[str]:
        facts, told = self.facts, []
        if facts.known == "equal hashes":
            told.append("the same facts, all of them (by their hashes)")
        if facts.contradictions:
            told.append(f"contradict one another: {_prompts(facts.contradictions)}")
        if facts.duplicates:
            told.append(f"the same edit twice: {_prompts(facts.duplicates)}")
        if facts.subjects:
            more = f" and {len(facts.subjects) - 1} more" if len(facts.subjects) > 1 else ""
            told.append(f"other prompts about the same subject ({facts.subjects[0]!r}{more}), maybe the same fact")
        return told

    def _of_order(self) -> list[str]:
        if self.upside_down:
            return [f"{self.names[0]} was made on top of {self.names[1]} and must stand above it"]
        if self.parent:
            return [f"{self.names[1]} was made on top of {self.names[0]}"]
        return ["made apart, neither with the other on the model"] if self.share_places else []

    def _of_places(self) -> list[str]:
        told = []
        if self.weights:
            worst = min(self.weights, key=_badness)
            share = f" (cosine {worst.cosine:+.2f})" if worst.cosine is not None else ""
            count = len(self.weights)
            told.append(f"both change {worst.place}: {_EFFECTS[worst.effect]}{share}" + _more(count - 1, "weight"))
        if self.modules:
            one = self.modules[0]
            inside = "the inner one acts first" if one.places[0] != one.places[1] else "the lower one acts first"
            told.append(
                f"both act at {one.places[0]} ({' and '.join(one.kinds)}): {inside}, and the other sees what it gives"
                + _more(len(self.modules) - 1, "module")
            )
        if self.routers:
            told.append(
                f"both route prompts ({' and '.join(self.routers)}): each sees the prompt as written; the lower one's "
                "text comes first, and of two models the higher one's answers"
            )
        return told


@frozen(kw_only=True)
class ConflictReport:
    """Two or more patches, pair by pair.

    Attributes:
        ids, names: of the patches, in the order given.
        pairs: all pairs.
        order: why they cannot be put on in this order; None when they can.
        notes: what should be known of the rest.
    """

    ids: tuple[str, ...]
    names: tuple[str, ...]
    pairs: tuple[PatchPair, ...]
    order: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def contradictions(self) -> tuple[PatchPair, ...]:
        """Pairs that edit a prompt to different targets."""
        return tuple(pair for pair in self.pairs if pair.facts.contradictions)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Verdicts of pairs with facts in common, or that meet at a module, a router or in what a weight answers to."""
        return tuple(
            pair.verdict
            for pair in self.pairs
            if pair.share_facts
            or pair.upside_down
            or pair.modules
            or pair.routers
            or any(each.effect not in _HARMLESS for each in pair.weights)
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-able: ``patches``, ``pairs`` (with their ``verdict``), ``order``, ``notes``."""
        return {
            "patches": [{"id": each, "name": name} for each, name in zip(self.ids, self.names, strict=True)],
            "pairs": [
                {"first": pair.first, "second": pair.second, "verdict": pair.verdict, **_plain(pair)}
                for pair in self.pairs
            ],
            "order": self.order,
            "notes": list(self.notes),
        }


_EFFECTS: dict[Effect, str] = {
    "add up": "the changes add up in part",
    "cancel": "the changes cancel in part",
    "share inputs": "they answer to partly the same inputs with something else",
    "share outputs": "they write partly the same directions, for other inputs",
    "lie apart": "in directions of their own",
    "replaced": "the higher one replaces the whole weight, and the lower one's is lost",
    "on a replaced weight": "one replaces the whole weight, and the other adds to that",
    "not measured": "how far they meet was not measured",
}


def _plain(pair: PatchPair) -> dict[str, Any]:
    fields = ("facts", "weights", "modules", "routers", "parent", "upside_down")
    found: dict[str, Any] = asdict(pair)
    return {key: found[key] for key in fields}


def _badness(meeting: WeightMeeting) -> tuple[int, float]:
    return _WORST_FIRST.index(meeting.effect), -abs(meeting.cosine or 0.0)


def _prompts(shared: tuple[SharedPrompt, ...]) -> str:
    first = shared[0]
    prompt = repr(first.prompt if len(first.prompt) <= _SHOWN else f"{first.prompt[:_SHOWN]}...")
    mine, theirs = (" and ".join(repr(each) for each in side[:3]) for side in (first.first, first.second))
    targets = mine if mine == theirs else f"{mine}, and {theirs}"
    return f"{prompt} to {targets}" + _more(len(shared) - 1, "prompt")


def _more(count: int, what: str) -> str:
    return f", and {count} more {what}{'s' * (count != 1)}" if count else ""
