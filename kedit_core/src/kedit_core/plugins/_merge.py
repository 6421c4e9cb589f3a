"""Putting together what several plugins answer to one hook, with both parties named where they clash."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from kedit_core.contract import MetricInfo, MetricResult
from kedit_core.errors import DuplicateNameError, UnknownNameError
from kedit_core.plugins._entries import article, nearest
from kedit_core.plugins._guard import Origin

T = TypeVar("T")


def listed(answers: Iterable[tuple[Origin, Any]], hook: str, kind: type[T] | None) -> list[tuple[Origin, T]]:
    """The items of all answers to a ``register_...`` hook, each with who gave it.

    Raises:
        PluginError: an answer is not a sequence, or an item is not of ``kind``; names the plugin.
    """
    items = []
    for origin, answer in answers:
        if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
            raise origin.error(hook, f"returned {type(answer).__name__} from {hook}; return a list")
        for item in answer:
            if kind is not None and not isinstance(item, kind):
                raise origin.error(hook, f"returned {type(item).__name__} in the list of {hook}, not {kind.__name__}")
            items.append((origin, item))
    return items


def chosen(items: Iterable[tuple[Origin, T]], names: Mapping[int, Iterable[str]], name: str, word: str) -> T:
    """The one item that bears a name.

    Args:
        items: what is registered.
        names: index of an item -> its names.
        word: what such an item is called in messages.

    Raises:
        UnknownNameError: nobody registered it; the message has the nearest names.
        DuplicateNameError: two did; the message names both.
    """
    having = [pair for index, pair in enumerate(items) if name in names[index]]
    if not having:
        known = sorted({known for each in names.values() for known in each})
        hint = nearest(name, known) or (f" (there are {', '.join(known)})" if known else " (none is registered)")
        raise UnknownNameError(f"no installed plugin has {article(word)} {word} called {name!r}{hint}")
    if len(having) > 1:
        parties = " and ".join(str(origin) for origin, _ in having)
        raise DuplicateNameError(f"{word} {name!r} is registered by both {parties}; uninstall one")
    return having[0][1]


def passed_on(origin: Origin, answer: Any) -> Sequence[Any]:
    """What a link of the chain of ``prepare_requests`` hands to the next; PluginError when it is no list."""
    if not isinstance(answer, Sequence) or isinstance(answer, (str, bytes)):
        what = f"returned {type(answer).__name__} from prepare_requests; return a list of requests"
        raise origin.error("prepare_requests", what)
    return answer


def merged(
    answers: Iterable[tuple[Origin, Any]], declared: Sequence[tuple[Origin, MetricInfo]]
) -> dict[str, MetricResult]:
    """One mapping of all metrics.

    A declaration speaks of a key when it names the key, or the key's part after the first dot (``locality`` speaks of
    ``gen_free.locality`` and ``tf_token.locality``).

    Raises:
        PluginError: an answer is not a mapping of names to :class:`MetricResult`, or two plugins return one key and not
            exactly one of them declares that it replaces it; both are named.
    """
    given: dict[str, list[tuple[Origin, MetricResult]]] = {}
    for origin, answer in answers:
        for key, result in _checked(origin, answer).items():
            given.setdefault(key, []).append((origin, result))
    for key, sharing in given.items():
        if standing_in := [origin for origin, info in declared if _replaces(info, key, origin, given)]:
            sharing[:] = [pair for pair in sharing if pair[0] in standing_in]
    for key, sharing in given.items():
        if len(sharing) > 1:
            first, second = sharing[0][0], sharing[1][0]
            raise second.error(
                "evaluate",
                f"returned the metric {key!r}, which {first} returns too; rename it, or let exactly one of them "
                "declare in register_metrics that it replaces the other's",
            )
    return {key: sharing[0][1] for key, sharing in given.items() if sharing}


def _checked(origin: Origin, answer: Any) -> Mapping[str, MetricResult]:
    if not isinstance(answer, Mapping):
        raise origin.error("evaluate", f"returned {type(answer).__name__} from evaluate, not a mapping of metrics")
    for key, result in answer.items():
        if not isinstance(key, str) or not isinstance(result, MetricResult):
            found = f"{key!r} -> {type(result).__name__}"
            raise origin.error("evaluate", f"returned {found} from evaluate, not a name and a MetricResult")
    return answer


def _replaces(
    info: MetricInfo, key: str, origin: Origin, given: Mapping[str, list[tuple[Origin, MetricResult]]]
) -> bool:
    """Whether ``origin`` declares to replace this key, and gave what stands in for it."""
    prefix, _, short = key.partition(".")
    if info.replaces is None or info.replaces not in (key, short):
        return False
    names = {info.name, f"{prefix}.{info.name}"}
    return any(owner == origin for name in names for owner, _ in given.get(name, ()))
