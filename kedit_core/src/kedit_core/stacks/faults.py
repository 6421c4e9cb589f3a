"""What a stack file may hold: every fault of one is found at once, and named with its path."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import PurePosixPath
from typing import Any

from kedit_core.contract import WAYS

FORMAT = 1
ENDINGS = (".yaml", ".yml")
DTYPES = ("float32", "bfloat16", "float16", "float64")
FIELDS = ("format", "base", "revision", "dtype", "patches", "weights_sha256", "arithmetic")
PATCH_FIELDS = ("id", "file", "way", "source")

_LONGEST = 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODEL = re.compile(r"[A-Za-z0-9][\w.-]*([/:][A-Za-z0-9][\w.-]*)?", re.ASCII)
_FOLDER = re.compile(r"~|[.]{1,2}|(~|[.]{0,2})/.*")
_WORD = re.compile(r"[A-Za-z0-9][\w.+/:-]*", re.ASCII)


def is_folder(base: str) -> bool:
    """Whether a base is meant as a folder, and not as a name."""
    return bool(_FOLDER.fullmatch(base))


def stack_faults(content: Any) -> Iterator[str]:
    """All that is wrong with the content of a stack file, one sentence each, beginning with its path."""
    if not isinstance(content, dict):
        yield "the file: is no mapping; it has the keys format, base and patches"
        return
    yield from _keys(content, FIELDS, ("format", "base", "patches"), "")
    if "format" in content and (type(content["format"]) is not int or content["format"] != FORMAT):
        yield f"format: is {_shown(content['format'])}, and this kedit reads format {FORMAT}; update kedit"
    if "base" in content and not _is_model(content["base"]):
        yield (
            f"base: is {_shown(content['base'])}; give a registered name, a Hub id, or a folder that begins with ./, "
            "../, / or ~"
        )
    elif "base" in content and PurePosixPath(content["base"]).suffix.lower() in ENDINGS:
        yield f"base: is {_shown(content['base'])}, a stack file; the base of a stack is a model"
    if "revision" in content and not (_text(content["revision"]) and _WORD.fullmatch(content["revision"])):
        yield f"revision: is {_shown(content['revision'])}; give a commit or a tag"
    if "revision" in content and _text(content.get("base")) and is_folder(content["base"]):
        yield "revision: is for a model from the Hub, and the base is a folder; leave it out"
    if "dtype" in content and content["dtype"] not in DTYPES:
        yield f"dtype: is {_shown(content['dtype'])}; give one of {', '.join(DTYPES)}"
    yield from _digest_faults(content)
    if not isinstance(patches := content.get("patches", []), list):
        yield "patches: is no list; begin each patch with a dash, or write [] for none"
        return
    seen: dict[object, int] = {}
    for number, patch in enumerate(patches):
        yield from _patch_faults(patch, f"patches[{number}]", seen, number)


def _digest_faults(content: Mapping[str, Any]) -> Iterator[str]:
    if "weights_sha256" in content:
        digest = content["weights_sha256"]
        if not (_text(digest) and _SHA256.fullmatch(digest)):
            yield f"weights_sha256: is {_shown(digest)}; it has 64 lower-case hexadecimal digits (quote them)"
        yield from (
            f"{needed}: is missing; a digest depends on it, so run `kedit stack lock`, or leave weights_sha256 out"
            for needed in ("dtype", "arithmetic")
            if needed not in content
        )
    if "arithmetic" in content and not _text(content["arithmetic"]):
        yield f"arithmetic: is {_shown(content['arithmetic'])}; it is a text that kedit writes"


def _patch_faults(patch: Any, path: str, seen: dict[object, int], number: int) -> Iterator[str]:
    if not isinstance(patch, dict):
        yield f"{path}: is no mapping; it has the keys id and file"
        return
    yield from _keys(patch, PATCH_FIELDS, ("id", "file"), f"{path}.")
    if "id" in patch:
        if not (_text(patch["id"]) and _SHA256.fullmatch(patch["id"])):
            yield f"{path}.id: is {_shown(patch['id'])}; it has 64 lower-case hexadecimal digits (quote them)"
        elif (before := seen.setdefault(patch["id"], number)) != number:
            yield f"{path}.id: is that of patches[{before}]; a patch is on a stack once"
    if "file" in patch and (problem := _file_problem(patch["file"])):
        yield f"{path}.file: is {_shown(patch['file'])}; {problem}"
    if "way" in patch and patch["way"] not in WAYS:
        yield f"{path}.way: is {_shown(patch['way'])}; give {' or '.join(WAYS)}"
    if "source" in patch and not _text(patch["source"]):
        yield f"{path}.source: is {_shown(patch['source'])}; give a text on one line"


def _keys(given: Mapping[str, Any], known: Sequence[str], needed: Sequence[str], path: str) -> Iterator[str]:
    yield from (f"{path}{key}: is missing" for key in needed if key not in given)
    for key in given:
        if key not in known:
            close = get_close_matches(key, known, n=1)
            meant = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            yield f"{path}{_shown(key)}: is no key of a stack file; {meant}"


def _is_model(base: Any) -> bool:
    return _text(base) and (is_folder(base) or bool(_MODEL.fullmatch(base)))


def _file_problem(file: Any) -> str | None:
    if not _text(file):
        return "give the name of a file"
    parts = file.split("/")
    if file.startswith(("/", "~")) or "\\" in file or re.match(r"[A-Za-z]:", file):
        return "give it relative to the stack file, with / between names"
    if ".." in parts:
        return "it must lie in the stack file's folder or below; put the patch, or a link to it, there"
    return "give the name of a file" if parts[-1] in ("", ".") else None


def _text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _LONGEST and value.isprintable() and value == value.strip()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
