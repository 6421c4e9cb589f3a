"""A method's settings as a table, from its attrs class."""

from __future__ import annotations

import json
import re
import types
import typing
from typing import Any, Literal, Union

import attrs

from kedit_core.hparams import HyperParams, ModelShape
from site_parts.docstrings import descriptions
from site_parts.text import code, markdown, table

# any model of no preset: only which fields `for_depth` gives is asked, never what
_SOME_MODEL = ModelShape(architecture="LlamaForCausalLM", num_layers=32, hidden_size=4096)
_IN_FILES = {"None": "null", "True": "true", "False": "false"}
_PYTHON = re.compile(rf"\b({'|'.join(_IN_FILES)})\b")
_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text", type(None): "null"}


def settings_table(cls: type[HyperParams]) -> str:
    """Name, type, default and meaning of every setting, those that the class itself describes first.

    Raises:
        ValueError: a setting has no description.
    """
    said, hints = descriptions(cls), typing.get_type_hints(cls)
    by_shape = set(cls.for_depth(_SOME_MODEL))
    fields = [each for each in attrs.fields(cls) if each.init]
    if silent := [each.name for each in fields if each.name not in said]:
        raise ValueError(f"{cls.__module__}.{cls.__name__} does not describe {', '.join(silent)}")
    fields.sort(key=lambda each: list(said).index(each.name))
    rows = [
        [
            code(each.name),
            shown_type(hints[each.name]),
            _default(cls, each, each.name in by_shape),
            _meaning(said[each.name]),
        ]
        for each in fields
    ]
    return table(["setting", "type", "default", "meaning"], rows)


def shown_type(hint: Any) -> str:
    """A type in the words of a settings file: ``tuple[int, ...] | None`` is a "list of whole numbers, or null"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(code(str(each)) for each in arguments)
    if origin in (Union, types.UnionType):
        parts = [shown_type(each) for each in arguments if each is not type(None)]
        return " or ".join(parts) + (", or null" if type(None) in arguments else "")
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"list of {_several(arguments[0])}"
        return "[" + ", ".join(shown_type(each) for each in arguments) + "]"
    return _PLAIN[hint]


def _several(hint: Any) -> str:
    """The plural, where a word has one."""
    return {int: "whole numbers", float: "numbers", str: "texts"}.get(hint) or shown_type(hint)


def _default(cls: type[HyperParams], each: attrs.Attribute[Any], by_shape: bool) -> str:
    if each.default is attrs.NOTHING:
        return "by preset or depth" if by_shape else "none, must be given"
    value = each.default
    if isinstance(value, attrs.Factory):  # type: ignore[arg-type]
        value = getattr(cls.from_dict(dict(cls.for_depth(_SOME_MODEL))), each.name)
    shown = code(json.dumps(value))
    return f"{shown}; without a preset by the model's shape" if by_shape else shown


def _meaning(text: str) -> str:
    """A description, its values as a settings file has them."""
    return _PYTHON.sub(lambda found: _IN_FILES[found[0]], markdown(text))
