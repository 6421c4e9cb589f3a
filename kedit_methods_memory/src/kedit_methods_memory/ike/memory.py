"""The memory of facts as a patch holds it, and the text it puts before a prompt.

What stands before a prompt follows from the patch (and the file of demonstrations, where it is by hash) and the prompt
alone: no model, tokenizer or clock is asked, so it is the same text in every process, and on a client of an endpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import NoneType
from typing import Any, Protocol, cast

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_core.patches import RouterOperation
from kedit_methods_memory.encoders import Identity
from kedit_methods_memory.fields import mapping, typed
from kedit_methods_memory.ike import texts
from kedit_methods_memory.ike.retrieval import Drawn
from kedit_methods_memory.nearest import nearest

KIND = "ike.context"
VERSION = 1
_NONE = -1  # stands where a fact has fewer demonstrations than another
_SLACK = 3  # tokens that joining texts may add


class Demonstrations(Protocol):
    """Texts of demonstrations by record number, type and variant."""

    def text(self, number: int, kind: int, variant: int) -> str:
        """One demonstration."""


@frozen(kw_only=True)
class Fact:
    """One fact in the memory, and what it takes in tokens of the base's tokenizer.

    Attributes:
        id: of its request.
        prompt, target: the fact; ``subject`` is for people.
        case_id: of its request; a demonstration of the same case is none for other facts.
        drawn: its demonstrations, nearest first.
        drawn_tokens: tokens of each of them.
        head_tokens: of what the query block has before the query, special tokens included.
        copy_tokens: of the fact's own copy.
    """

    id: str
    prompt: str
    target: str
    subject: str | None = None
    case_id: str | None = None
    drawn: tuple[Drawn, ...] = ()
    drawn_tokens: tuple[int, ...] = ()
    head_tokens: int = 0
    copy_tokens: int = 0


@frozen(eq=False, kw_only=True)
class Memory:
    """Facts with their vectors and demonstrations.

    Attributes:
        mode: see the settings of IKE.
        facts: in the order in which they came.
        embeddings: ``[facts, width]`` float32 of length 1, of the facts' prompts.
        tau: a prompt whose best fact scores below this passes through; None: none does.
        window: tokens that a prompt with its context may have; None for no limit.
        answer_tokens: how many of them are kept free.
        encoder: record of what made the embeddings (:class:`kedit_methods_memory.encoders.Identity`).
        demonstrations: record of where the demonstrations come from; None without any.
        settings: what they were drawn with (k, ratio, seed), for people.
        records: the records' texts as JSON, where they are in the patch.
    """

    mode: str
    facts: tuple[Fact, ...]
    embeddings: Tensor
    tau: float | None
    window: int | None
    answer_tokens: int
    encoder: Mapping[str, Any]
    demonstrations: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] = field(factory=dict)
    records: Mapping[str, Any] = field(factory=dict)

    @property
    def asks_encoder(self) -> bool:
        """Whether prompts must be compared with facts; a single fact without a threshold always applies."""
        return self.tau is not None or len(self.facts) > 1

    @property
    def longest(self) -> int:
        """Most demonstrations that a fact has."""
        return max((len(fact.drawn) for fact in self.facts), default=0)

    @cached_property
    def live(self) -> list[int]:
        """Indices of the facts that count: of one prompt the last. Earlier ones are here for when it is dropped."""
        return sorted({fact.prompt.strip(): index for index, fact in enumerate(self.facts)}.values())

    @cached_property
    def _newest_first(self) -> tuple[Tensor, Tensor]:
        """Indices of the facts that count, and their vectors."""
        order = torch.tensor(self.live[::-1], dtype=torch.int64)
        return order, self.embeddings[order]

    def best(self, queries: Tensor) -> list[int | None]:
        """The fact of each query ``[queries, width]``, or None below the threshold; of equally near ones the newest.

        A score is of its query and fact alone: no other row changes a bit of it, as it would in a matrix product.
        """
        self.check_width(queries)
        order, keys = self._newest_first
        index = order[nearest(queries, keys).index]
        scores = (queries * self.embeddings[index]).sum(dim=1)
        chosen = zip(index.tolist(), scores.tolist(), strict=True)
        return [found if self.tau is None or score >= self.tau else None for found, score in chosen]

    def check_width(self, vectors: Tensor) -> None:
        """Raise PatchFormatError for vectors that cannot be compared with the facts'."""
        if vectors.shape[1] != self.embeddings.shape[1]:
            raise PatchFormatError(
                f"the patch has vectors of {self.embeddings.shape[1]} numbers, and its encoder makes "
                f"{vectors.shape[1]}; it was not made with this encoder"
            )

    def used(self, fact: Fact, query: str) -> tuple[int, bool]:
        """How many demonstrations stand before a query, and whether the fact's own copy does.

        The least similar ones are left out first, the copy last, until the window holds what remains, the query and
        the answer. How many tokens a query counts as, :func:`kedit_methods_memory.ike.texts.most_tokens` says.
        """
        if self.window is None:
            return len(fact.drawn), bool(fact.copy_tokens)
        room = self.window - self.answer_tokens - fact.head_tokens - texts.most_tokens(query) - _SLACK
        copy = 0 < fact.copy_tokens <= room
        if fact.copy_tokens and not copy:
            return 0, False
        room -= fact.copy_tokens
        count = 0
        for tokens in fact.drawn_tokens:
            if tokens > room:
                break
            room, count = room - tokens, count + 1
        return count, copy

    def context(self, fact: Fact, query: str, demonstrations: Demonstrations) -> str:
        """What stands before a query that this fact is put before."""
        count, copy = self.used(fact, query)
        return context_of(self.mode, fact, fact.drawn[:count], copy, demonstrations)

    def without(self, fact_id: str) -> Memory:
        """The memory without the facts of this id."""
        kept = [i for i, fact in enumerate(self.facts) if fact.id != fact_id]
        return evolve(self, facts=tuple(self.facts[i] for i in kept), embeddings=self.embeddings[kept])

    def shown(self) -> set[tuple[int, int, int]]:
        """Every demonstration of any fact: (record, type, variant)."""
        return {(each.record, each.kind, each.variant) for fact in self.facts for each in fact.drawn}

    # ------------------------------------------------------------------ as an operation
    def operation(self) -> RouterOperation:
        """The memory as the operation of a patch."""
        tensors = {"memory.embeddings": self.embeddings}
        if self.mode != "ice":
            tensors |= {
                "memory.demo_ids": self._table([[each.record for each in fact.drawn] for fact in self.facts]),
                "memory.demo_types": self._table([[e.kind for e in fact.drawn] for fact in self.facts], torch.int8),
                "memory.demo_variant": self._table(
                    [[e.variant for e in fact.drawn] for fact in self.facts], torch.int16
                ),
                "memory.demo_tokens": self._table([fact.drawn_tokens for fact in self.facts], torch.int32),
            }
        counts = [[fact.head_tokens, fact.copy_tokens] for fact in self.facts]
        tensors["memory.tokens"] = torch.tensor(counts, dtype=torch.int32).reshape(-1, 2)
        # how many demonstrations there is room for before the fact's own prompt
        used = [self.used(fact, fact.prompt)[0] for fact in self.facts]
        tensors["memory.k_used"] = torch.tensor(used, dtype=torch.int32)
        config = {
            "template_version": texts.TEMPLATE_VERSION,
            "mode": self.mode,
            "facts": [
                {
                    "id": fact.id,
                    "case_id": fact.case_id,
                    "prompt": fact.prompt,
                    "subject": fact.subject,
                    "target": fact.target,
                }
                for fact in self.facts
            ],
            "tau": self.tau,
            "window": self.window,
            "answer_tokens": self.answer_tokens,
            "encoder": dict(self.encoder),
            "demonstrations": None if self.demonstrations is None else dict(self.demonstrations),
            "settings": dict(self.settings),
            "records": dict(self.records),
        }
        return RouterOperation(KIND, VERSION, config, tensors)

    def _table(self, rows: Sequence[Sequence[int]], dtype: torch.dtype = torch.int64) -> Tensor:
        table = torch.full((len(rows), self.longest), _NONE, dtype=dtype)
        for row, values in enumerate(rows):
            table[row, : len(values)] = torch.tensor(list(values), dtype=dtype)
        return table

    @classmethod
    def of(cls, operation: RouterOperation) -> Memory:
        """The memory that an operation holds. Raises PatchFormatError when it is none that kedit wrote."""
        config, tensors = operation.config, operation.tensors
        try:
            if config["template_version"] != texts.TEMPLATE_VERSION:
                raise PatchFormatError(
                    f"the patch has context texts of version {config['template_version']}, and this kedit writes "
                    f"version {texts.TEMPLATE_VERSION}; update kedit-methods-memory"
                )
            Identity.read(config["encoder"])
            return cls(
                facts=_facts(typed(config, "facts", list, tuple), tensors),
                embeddings=_vectors(tensors["memory.embeddings"]),
                mode=_mode(config["mode"]),
                tau=typed(config, "tau", int, float, NoneType),
                window=typed(config, "window", int, NoneType),
                answer_tokens=typed(config, "answer_tokens", int),
                demonstrations=_source(config["demonstrations"]),
                **{key: mapping(config[key], key) for key in ("encoder", "settings", "records")},
            )
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise PatchFormatError(
                f"the patch's {KIND} operation cannot be read ({type(error).__name__}: {error}); it was not made "
                "by kedit"
            ) from error


def _mode(value: Any) -> str:
    if value not in ("ike", "easyedit", "ice", "format"):
        raise ValueError(f"mode is {value!r:.60}")
    return str(value)


def _source(value: Any) -> Mapping[str, Any] | None:
    if value is not None and mapping(value, "demonstrations").get("stored") == "by_hash":
        typed(value, "clean_paraphrases", bool)
        if not all(isinstance(part, str) for part in typed(value, "neighbours", list, tuple)):
            raise TypeError("neighbours are no texts")
    return cast("Mapping[str, Any] | None", value)


def _vectors(found: Tensor) -> Tensor:
    if found.dim() != 2 or not found.is_floating_point():
        raise ValueError(f"embeddings {list(found.shape)} of {found.dtype}")
    return found.float()


def context_of(mode: str, fact: Fact, drawn: Sequence[Drawn], copy: bool, demonstrations: Demonstrations) -> str:
    """The text before a query: demonstrations (given nearest first), the fact's copy, and the query block's head."""
    ordered = drawn if mode == "easyedit" else drawn[::-1]
    shown = [demonstrations.text(each.record, each.kind, each.variant) for each in ordered]
    own = (fact.prompt, fact.target)
    if copy:
        shown.append(texts.demonstration(own, own))
    return "".join(shown) + texts.query_head(mode, own)


def _facts(listed: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> tuple[Fact, ...]:
    if wrong := [name for name, each in tensors.items() if name != "memory.embeddings" and each.is_floating_point()]:
        raise TypeError(f"{wrong[0]} has no whole numbers")
    counts = tensors["memory.tokens"].tolist()
    if not len(listed) == len(counts) == len(tensors["memory.embeddings"]):
        raise ValueError(f"{len(listed)} facts with {len(counts)} rows of numbers")
    blank: list[list[int]] = [[] for _ in listed]
    ids, kinds, variants, tokens = (
        tensors[f"memory.{name}"].tolist() if f"memory.{name}" in tensors else blank
        for name in ("demo_ids", "demo_types", "demo_variant", "demo_tokens")
    )
    facts = []
    for row, (one, (head, copy)) in enumerate(zip(listed, counts, strict=True)):
        drawn = [Drawn(*each) for each in zip(ids[row], kinds[row], variants[row], strict=True) if each[0] != _NONE]
        facts.append(
            Fact(
                id=typed(one, "id", str),
                prompt=typed(one, "prompt", str),
                target=typed(one, "target", str),
                subject=typed(one, "subject", str, NoneType),
                case_id=typed(one, "case_id", str, NoneType),
                drawn=tuple(drawn),
                drawn_tokens=tuple(tokens[row][: len(drawn)]),
                head_tokens=head,
                copy_tokens=copy,
            )
        )
    return tuple(facts)
