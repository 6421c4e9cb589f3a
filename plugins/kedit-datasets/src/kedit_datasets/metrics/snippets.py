"""Texts about subjects that have an attribute, ``attribute_snippets.json`` of CounterFact (Meng et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from attrs import frozen

from kedit_core.errors import InputError
from kedit_core.requests import EditRequest
from kedit_datasets.records import json_records

Key: TypeAlias = tuple[str, str]
"""Relation id, id of the answer."""


@frozen
class Snippet:
    """A text about a subject, which is its ``name`` (None where the file has none)."""

    name: str | None
    text: str


Snippets: TypeAlias = Mapping[Key, list[Snippet]]


def key_of(request: EditRequest) -> Key | None:
    """Where a request's texts are: of its relation and its new answer, as CounterFact's reader writes them."""
    about = request.meta.get("counterfact")
    if not isinstance(about, Mapping):
        return None
    return str(about.get("relation_id")), str(about.get("target_new_id"))


def read_snippets(path: Path) -> dict[Key, list[Snippet]]:
    """The texts of each relation and answer, in the file's order.

    Raises InputError for a file that is no list of ``{relation_id, target_id, samples: [{name, text}]}``.
    """
    found: dict[Key, list[Snippet]] = {}
    for number, record in enumerate(json_records(path)):
        try:
            key = (record["relation_id"], record["target_id"])
            samples = [Snippet(sample.get("name"), sample["text"]) for sample in record["samples"]]
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"record {number} of {path} has no relation_id, target_id and samples with a text ({error}); give "
                "attribute_snippets.json as published"
            ) from error
        texts = (*key, *(each.text for each in samples), *(each.name for each in samples if each.name is not None))
        if not all(isinstance(each, str) for each in texts):
            raise InputError(
                f"record {number} of {path} has something else where ids and texts should be; they are text"
            )
        found.setdefault(key, []).extend(samples)
    return found
