"""What becomes of one key of a settings file: the few kinds of rules that the tables are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias

from attrs import field, frozen

Outcome: TypeAlias = Literal["converted", "dropped", "unsupported", "unknown"]


@frozen
class Answer:
    """What a rule says of a value.

    Attributes:
        outcome: see :class:`Told`.
        settings: ours, by name.
        why: for people; may be empty when converted.
    """

    outcome: Outcome
    settings: Mapping[str, Any] = field(factory=dict)
    why: str = ""


Rule: TypeAlias = Callable[[Any], Answer]


@frozen(kw_only=True)
class Told:
    """One key of the file.

    Attributes:
        key: its name; ``grace.num_iter`` of a nested one.
        value: as the file has it.
        outcome: ``converted`` into ``settings``; ``dropped``, since kedit does without; ``unsupported``: kedit has
            nothing like it, or refuses the value; ``unknown``: EasyEdit's method has no such key.
        settings: what it became.
        why: the reason, or what to do instead.
    """

    key: str
    value: Any
    outcome: Outcome
    settings: Mapping[str, Any] = field(factory=dict)
    why: str = ""


@frozen(kw_only=True)
class Table:
    """How the settings of one of EasyEdit's methods are converted.

    Attributes:
        name: what EasyEdit calls it (``alg_name`` or ``alg``).
        method: ours, or how the file's keys choose it.
        methods: all of ours that it may be converted for.
        rules: by key; a nested key has its path.
        variants: by our method, rules that differ from ``rules`` for it.
        implied: settings of ours for keys that the file leaves out, by that key.
        remarks: in what the same settings still do something else here, one sentence each.
        training: whether the settings are for training an editor (``kedit train --hparams``).
    """

    name: str
    method: str | Callable[[Mapping[str, Any]], str]
    methods: tuple[str, ...]
    rules: Mapping[str, Rule]
    variants: Mapping[str, Mapping[str, Rule]] = field(factory=dict)
    implied: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    remarks: tuple[str, ...] = ()
    training: bool = False

    def chosen(self, settings: Mapping[str, Any]) -> str:
        """Our method for these settings of theirs."""
        return self.method if isinstance(self.method, str) else self.method(settings)


def to(name: str, change: Callable[[Any], Any] | None = None, why: str = "") -> Rule:
    """The value under our name; ``change`` may raise ValueError with the reason why there is no such value here."""
    return into(lambda value: {name: value if change is None else change(value)}, why)


def into(change: Callable[[Any], Mapping[str, Any]], why: str = "") -> Rule:
    """Several settings of ours from one value, or none where it says what holds anyway; ValueError as in :func:`to`."""

    def rule(value: Any) -> Answer:
        try:
            settings = change(value)
            return Answer("converted" if settings else "dropped", settings, why)
        except ValueError as error:
            return Answer("unsupported", why=str(error))

    return rule


def dropped(why: str) -> Rule:
    """Not needed here, whatever the value."""
    return lambda value: Answer("dropped", why=why)


def only(*fine: Any, why: str, otherwise: str = "") -> Rule:
    """Nothing is lost with these values (``why``); any other is not supported (``otherwise``)."""

    def rule(value: Any) -> Answer:
        if any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in fine):
            return Answer("dropped", why=why)
        return Answer("unsupported", why=otherwise or why)

    return rule


def one_of(known: Mapping[Any, Any]) -> Callable[[Any], Any]:
    """For :func:`to`: their word -> ours."""

    def change(value: Any) -> Any:
        if not isinstance(value, str | bool | None) or value not in known:
            raise ValueError(f"kedit has no {value!r} here; known are {', '.join(map(str, known))}")
        return known[value]

    return change


def single(value: Any) -> Any:
    """For :func:`to`: a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    raise ValueError("kedit edits one layer with this method; name one")
