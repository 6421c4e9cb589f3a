"""docs/hooks.md speaks of every hook there is, with its arguments, and of none that is not."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from kedit_core.contract import HookSpecs, public_hooks

PAGE = (Path(__file__).parents[2] / "docs" / "hooks.md").read_text(encoding="utf-8")


def signature(hook: str) -> str:
    names = [name for name in inspect.signature(getattr(HookSpecs, hook)).parameters if name != "self"]
    return f"{hook}({', '.join(names)})"


def section(hook: str) -> str:
    return PAGE.partition(f"### `{signature(hook)}`\n")[2].partition("\n### ")[0]


@pytest.mark.parametrize("hook", public_hooks())
def test_a_hook_is_documented(hook: str) -> None:
    assert f"| `{signature(hook)}` |" in PAGE, "in the table"
    text = section(hook)
    assert "**Called** " in text and "**Returns** " in text
    assert f"def {hook}(self" in text, "with an example"


@pytest.mark.parametrize("hook", public_hooks())
def test_the_table_tells_how_answers_are_taken(hook: str) -> None:
    (row,) = re.findall(rf"^\| `{re.escape(signature(hook))}` \| (\w+) \|", PAGE, re.MULTILINE)
    first = bool(getattr(HookSpecs, hook).kedit_spec["firstresult"])
    assert (row == "first") == first
    assert (row == "chain") == (hook == "prepare_requests")


def test_hooks_are_told_in_their_order_and_no_others() -> None:
    assert re.findall(r"^### `(\w+)\(", PAGE, re.MULTILINE) == list(public_hooks())
    assert re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE) == list(public_hooks())


@pytest.mark.parametrize("hook", public_hooks())
def test_the_specification_says_when_it_is_called(hook: str) -> None:
    assert inspect.getdoc(getattr(HookSpecs, hook))
