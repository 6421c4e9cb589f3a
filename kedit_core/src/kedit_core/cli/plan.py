"""What ``kedit edit --plan`` shows: what would be touched, how long it takes, how much memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kedit_core.cli.common import human_bytes, note, say, show_table

_PLACES = 8  # shown on the screen


def show_plan(plan: Mapping[str, Any]) -> None:
    """Print a plan of :meth:`Editor.plan`; what it would not have room for is a line on stderr."""
    rows = [
        ("model", _model(plan["model"])),
        ("method", plan["method"]),
        ("requests", _requests(plan)),
        ("operations", ", ".join(plan["operations"])),
        ("places", _places(plan["places"])),
        ("time", "not told by the method" if plan["seconds"] is None else f"about {human_time(plan['seconds'])}"),
        ("memory", _memory(plan)),
        *([] if plan["patch_bytes"] is None else [("patch", f"about {human_bytes(plan['patch_bytes'])}")]),
        *[("note", text) for text in plan["notes"]],
    ]
    show_table(("plan", ""), rows)
    say()
    settings = plan["hparams"]
    show_table(
        ("setting", "value", "from"),
        [(key, _short(value), settings["sources"].get(key, "")) for key, value in settings["values"].items()],
    )
    if plan["fits"] is False:
        note(
            f"warning: the edit needs about {human_bytes(plan['memory_bytes'])} beside the model and "
            f"{human_bytes(plan['available_bytes'])} are free on {plan['device']}; edit fewer facts at a time, or "
            "choose another --device"
        )
    say("\nNothing was done.")


def human_time(seconds: float) -> str:
    """``200`` -> ``3 min 20 s``; below ten seconds with one decimal."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "less than 0.1 s"
    total = round(seconds)
    for size, unit, smaller, part in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if total >= size:
            rest = total % size // smaller
            return f"{total // size} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{total} s"


def _model(model: Mapping[str, Any]) -> str:
    size = f"{model['layers']} layers of width {model['hidden_size']}"
    return f"{model['model_name'] or 'unnamed'} ({model['architecture']}, {size}, {', '.join(model['dtypes'])})"


def _requests(plan: Mapping[str, Any]) -> str:
    rounds = plan["rounds"]
    return f"{plan['requests']}, {plan['scenario']}, in {rounds} round{'s' * (rounds != 1)}"


def _places(places: Sequence[str] | None) -> str:
    if places is None:
        return "not told by the method"
    more = [f"and {len(places) - _PLACES} more"] if len(places) > _PLACES else []
    return "\n".join([*places[:_PLACES], *more])


def _memory(plan: Mapping[str, Any]) -> str:
    """The method's part, the model's, and what there is."""
    model = human_bytes(plan["model_bytes"])
    parts = [
        f"the model's {model}; the method does not tell what it needs"
        if plan["memory_bytes"] is None
        else f"about {human_bytes(plan['memory_bytes'])} beside the model's {model}"
    ]
    if plan["available_bytes"] is not None:
        parts.append(f"{human_bytes(plan['available_bytes'])} free on {plan['device']}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return ", ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
