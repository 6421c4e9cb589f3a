"""``index.json`` of a folder of patches, format 1: what is in the folder, read strictly.

::

    {"format": 1, "patches": [{"id": "<64 hex digits>", "file": "<id>.safetensors", "bytes": 5768, "title": "...",
      "method": "rome", "base": {"name": "org/model", "architecture": "LlamaForCausalLM"}, "tags": ["..."],
      "signature": "<id>.safetensors.sig"}]}

``base.name`` and ``signature`` may be null. Nothing else is in it, and nothing in it is believed of a patch: a file
counts once its bytes have the id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from attrs import field, frozen

from kedit_core.errors import InputError

FORMAT = 1
MAX_INDEX = 16 << 20  # bytes
MAX_ENTRIES = 65_536
MAX_TITLE = 200
MAX_TAGS = 64

_ID = re.compile(r"[0-9a-f]{64}")
_FILE = re.compile(r"[A-Za-z0-9][\w.-]{0,199}\.safetensors", re.ASCII)
_WORD = re.compile(r"[A-Za-z0-9][\w.+/:-]{0,255}", re.ASCII)
_TAG = re.compile(r"[\w][\w .+/:-]{0,63}")
_MARKS = 4_000_000
_FIELDS = ("id", "file", "bytes", "title", "method", "base", "tags", "signature")


def _words(tags: Iterable[str]) -> tuple[str, ...]:
    return tuple(tags)


@frozen(kw_only=True)
class Entry:
    """A patch in an index.

    Attributes:
        id: SHA-256 of its file.
        file: name of its file in the folder; never a path.
        bytes: size of its file.
        title: one line for people.
        method: who computed it.
        base_name: Hub id or registered name of its model, or None.
        architecture: class name of its model.
        tags: words to find it by.
        signature: name of its signature file in the folder, or None.
    """

    id: str
    file: str
    bytes: int
    title: str
    method: str
    base_name: str | None
    architecture: str
    tags: tuple[str, ...] = field(default=(), converter=_words)
    signature: str | None = None

    def __attrs_post_init__(self) -> None:
        _need(isinstance(self.id, str) and _ID.fullmatch(self.id), "id", "64 hexadecimal digits")
        _need(isinstance(self.file, str) and _FILE.fullmatch(self.file), "file", "a plain file name, NAME.safetensors")
        _need(type(self.bytes) is int and self.bytes >= 0, "bytes", "a whole number")
        check_title(self.title)
        _need(isinstance(self.method, str) and _WORD.fullmatch(self.method), "method", "the name of a method")
        known = self.base_name is None or (isinstance(self.base_name, str) and _WORD.fullmatch(self.base_name))
        _need(known, "base.name", "a Hub id, a registered name or null")
        fits = isinstance(self.architecture, str) and _WORD.fullmatch(self.architecture)
        _need(fits, "base.architecture", "a class name")
        check_tags(self.tags)
        _need(self.signature in (None, f"{self.file}.sig"), "signature", "the name of the file with .sig, or null")

    def to_dict(self) -> dict[str, Any]:
        """As it stands in the index."""
        return {
            "id": self.id,
            "file": self.file,
            "bytes": self.bytes,
            "title": self.title,
            "method": self.method,
            "base": {"name": self.base_name, "architecture": self.architecture},
            "tags": list(self.tags),
            "signature": self.signature,
        }


def check_title(title: object) -> None:
    """InputError unless it is one line of at most 200 printable characters."""
    fits = isinstance(title, str) and title.isprintable() and 0 < len(title.strip()) <= MAX_TITLE >= len(str(title))
    _need(fits, "title", f"one line of 1 to {MAX_TITLE} printable characters")


def check_tags(tags: Sequence[object]) -> None:
    """InputError unless there are at most 64 of letters, digits, spaces and ``. + / : - _``, 64 characters each."""
    fits = len(tags) <= MAX_TAGS and all(isinstance(tag, str) and _TAG.fullmatch(tag) for tag in tags)
    _need(fits, "tags", f"at most {MAX_TAGS} words of letters, digits and . + / : - _")


def read_index(data: bytes, source: str) -> tuple[Entry, ...]:
    """The entries of an index; InputError naming ``source`` and the first fault."""
    try:
        return _entries(_parsed(data))
    except InputError as error:
        raise InputError(f"{source} is no index of patches: {error}") from None


def write_index(entries: Sequence[Entry]) -> bytes:
    """The index of these entries, sorted by id; InputError when nobody could read it."""
    listed = [entry.to_dict() for entry in sorted(entries, key=lambda entry: entry.id)]
    data = json.dumps({"format": FORMAT, "patches": listed}, indent=1, ensure_ascii=False).encode() + b"\n"
    if len(listed) > MAX_ENTRIES or len(data) > MAX_INDEX:
        raise InputError(f"the index would have {len(listed)} patches; the limit is {MAX_ENTRIES}, so begin another")
    return data


def strict_json(data: bytes) -> Any:
    """JSON without duplicate keys or numbers that are none, bounded before it is parsed; InputError otherwise."""
    if sum(data.count(mark) for mark in (b",", b"[", b"{", b":")) > _MARKS:
        raise InputError(f"it holds more than {_MARKS} JSON values")
    try:
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"it is not JSON ({type(error).__name__})") from None


def _parsed(data: bytes) -> Any:
    if len(data) > MAX_INDEX:
        raise InputError(f"it has more than {MAX_INDEX} bytes")
    return strict_json(data)


def _entries(value: Any) -> tuple[Entry, ...]:
    if not isinstance(value, dict) or type(value.get("format")) is not int:
        raise InputError("it does not say which format it has")
    if value["format"] != FORMAT:
        raise InputError(f"it has format {value['format']}, and format {FORMAT} is read here; update kedit-hub")
    if set(value) != {"format", "patches"} or not isinstance(value["patches"], list):
        raise InputError("it has other fields than format and patches")
    if len(value["patches"]) > MAX_ENTRIES:
        raise InputError(f"it lists more than {MAX_ENTRIES} patches")
    entries = []
    for number, item in enumerate(value["patches"]):
        try:
            entries.append(_entry(item))
        except InputError as error:
            raise InputError(f"patches[{number}]: {error}") from None
    for what, names in (("id", [entry.id for entry in entries]), ("file", [entry.file for entry in entries])):
        if len(set(names)) != len(names):
            raise InputError(f"it lists one {what} twice")
    return tuple(entries)


def _entry(item: Any) -> Entry:
    if not isinstance(item, dict) or set(item) != set(_FIELDS):
        raise InputError(f"it has exactly the fields {', '.join(_FIELDS)}")
    base, tags = item["base"], item["tags"]
    if not isinstance(base, dict) or set(base) != {"name", "architecture"}:
        raise InputError("base has exactly the fields name and architecture")
    _need(isinstance(tags, list), "tags", "a list")
    plain = {name: item[name] for name in ("id", "file", "bytes", "title", "method", "signature")}
    return Entry(**plain, base_name=base["name"], architecture=base["architecture"], tags=tags)


def _need(fits: object, name: str, what: str) -> None:
    if not fits:
        raise InputError(f"{name} must be {what}")


def _unique(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError("it gives a key twice")
    return found


def _no_constant(name: str) -> NoReturn:
    raise InputError(f"{name[:20]} is not a JSON number")
