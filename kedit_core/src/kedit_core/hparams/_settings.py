"""Settings in files and on the command line: YAML with the scalars of YAML 1.2, and JSON.

PyYAML follows YAML 1.1, where ``5e-4`` is text, ``no`` is false and ``010`` is eight. Here the core schema of YAML 1.2
(section 10.3.2) decides, and nothing beyond it: no dates, no merge keys, no tags.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kedit_core.errors import HyperParamsError

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUTH = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_SPECIAL = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_BASES = {"0o": 8, "0x": 16}
_TAG = "tag:yaml.org,2002:"
_MOST_BYTES = 16 << 20  # of a file of settings
_MOST_VALUES = 100_000  # of a YAML text; what an alias stands for counts each time, since aliases multiply


def scalar(text: str) -> Any:
    """What a plain (unquoted) scalar stands for: null, a truth, a number, or the text itself.

    Raises:
        ValueError: a whole number of thousands of digits.
    """
    if _NULL.fullmatch(text):
        return None
    if _TRUTH.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text):
        return int(text[2:], base) if (base := _BASES.get(text[:2])) else int(text)
    if _SPECIAL.fullmatch(text):
        return float(text.replace(".", ""))
    if _FLOAT.fullmatch(text):
        return float(text)
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's parser with our own ideas of what things mean."""

    yaml_implicit_resolvers: dict[Any, Any] = {}
    made = 0

    def construct(self, node: yaml.Node) -> Any:
        """The value of a node and all below it."""
        self.made += 1
        if self.made > _MOST_VALUES:
            raise _fault(node, f"there are more than {_MOST_VALUES} values, aliases counted each time")
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
            return [self.construct(each) for each in node.value]
        if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
            return self._mapping(node)
        raise _fault(node, f"the tag {node.tag} is not understood")

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        if node.tag != f"{_TAG}str":
            raise _fault(node, f"the tag {node.tag} is not understood")
        try:
            return scalar(node.value) if node.style is None else node.value
        except ValueError:
            raise _fault(node, "the number has too many digits") from None

    def _mapping(self, node: yaml.MappingNode) -> dict[Hashable, Any]:
        made: dict[Hashable, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct(key_node)
            if not isinstance(key, str):
                raise _fault(key_node, "a key must be text")
            if key in made:
                raise _fault(key_node, f"the key {key!r} is given twice")
            made[key] = self.construct(value_node)
        return made


def _fault(node: yaml.Node, what: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark)


def _yaml(text: str) -> Any:
    """The one document of a YAML text; None for an empty one."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return None if node is None else loader.construct(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}: " if mark else ""
        told = ", ".join(filter(None, (error.context, error.problem)))
        raise ValueError(f"{place}{told or 'is not YAML'}") from None
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None
    except OverflowError:  # PyYAML's own reading of \U escapes
        raise ValueError("an escape in it is beyond what YAML has") from None
    except RecursionError:
        raise ValueError("is nested too deeply, or holds itself") from None


def _json(text: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
            raise ValueError(f"the key {twice!r} is given twice")
        return made

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is no number that JSON has")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


_READERS: Mapping[str, Callable[[str], Any]] = {".yaml": _yaml, ".yml": _yaml, ".json": _json}


def read_settings(path: str | Path) -> dict[str, Any]:
    """The mapping that a ``.yaml``, ``.yml`` or ``.json`` file holds; an empty YAML file holds none.

    Raises:
        HyperParamsError: the file cannot be read, is no UTF-8 text, is not of these formats, gives a key twice, or
            holds something other than a mapping.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise HyperParamsError(str(path), [f"cannot be read: {what}"]) from error
    if len(data) > _MOST_BYTES:
        raise HyperParamsError(str(path), [f"is larger than {_MOST_BYTES} bytes, which no file of settings is"])
    return parse_settings(data, path.suffix.lower(), str(path))


def parse_settings(data: bytes, ending: str, source: str) -> dict[str, Any]:
    """As :func:`read_settings`, of bytes at hand; ``ending`` tells the format."""
    if ending not in _READERS:
        raise HyperParamsError(source, [f"files that end in {ending!r} are not read; use .yaml or .json"])
    try:
        settings = _READERS[ending](data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise HyperParamsError(source, [f"line {line}: is not UTF-8 text; save the file as UTF-8"]) from None
    except ValueError as error:
        raise HyperParamsError(source, [_first(error)]) from None
    if settings is None and ending != ".json":
        return {}
    if not isinstance(settings, dict):
        raise HyperParamsError(source, [f"holds {type(settings).__name__}, expected a mapping of settings"])
    return settings


def parse_override(text: str) -> tuple[str, Any]:
    """Key and value of ``key=value``, the value read as YAML reads it.

    ``5e-4`` is a number, ``no`` is text and nothing at all is null; ``[1, 2]`` and ``{a: 1}`` are lists and mappings,
    and quotes make text of anything.

    Raises:
        HyperParamsError: there is no ``=``, no key before it, or a list, mapping or quoted text that does not end.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not key:
        raise HyperParamsError(f"-p {text}", ["is not of the form key=value"])
    try:
        # anything else is one plain scalar, whatever YAML would make of a colon or a hash in it
        return key, _yaml(value) if value[:1] in ("[", "{", '"', "'") else scalar(value)
    except ValueError as error:
        raise HyperParamsError(f"-p {text}", [_first(error)]) from None


def _first(error: ValueError) -> str:
    return (str(error).splitlines() or ["cannot be understood"])[0]
