"""What a GRACE patch keeps of each edit, so that later edits go on from it and single edits can be taken out again.

The structural log is replayed without the edit that goes: keys, radii and answers come out as if it had never been
there. A key's value is the one that the last remaining edit of it had left, but where edits share a key only now: that
value was not trained on all of them, and :meth:`Record.without` names those edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import evolve, frozen
from torch import Tensor

from kedit_core.errors import InputError, PatchFormatError
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.grace.book import Admission, Book, Label, Rules
from kedit_methods_memory.grace.kind import check_codebook
from kedit_methods_memory.hparams.grace import GraceHyperParams
from kedit_methods_memory.ragged import packed, unpacked
from kedit_methods_memory.rows import put_together, split_off

KIND = "grace.codebook"


@frozen
class Shared:
    """An edit by number, and the one before it of the same value, from which its training goes on."""

    edit: int
    before: int


@frozen(eq=False)
class Record:
    """A codebook with its history; rows of all tensors are float32 on the CPU.

    Attributes:
        book: keys, radii and labels as they are now.
        values: ``[n, out]`` one for each key.
        log: what each edit did, in order.
        labels: each edit's.
        queries: ``[edits, in]`` what each edit was read as.
        after: ``[edits, out]`` the value of the edit's key once that edit had been trained.
    """

    book: Book
    values: Tensor
    log: tuple[Admission, ...]
    labels: tuple[Label, ...]
    queries: Tensor
    after: Tensor

    @classmethod
    def empty(cls, rules: Rules, width: int, out: int) -> Record:
        """No edit yet."""
        return cls(Book(rules), torch.empty(0, out), (), (), torch.empty(0, width), torch.empty(0, out))

    @classmethod
    def of(cls, patch: EditPatch, hparams: GraceHyperParams) -> Record:
        """Read back what :meth:`operation` and :meth:`state` wrote; the slack is that of the patch.

        Raises PatchFormatError for a patch that lacks some of it, InputError for one that was joined from several.
        """
        what = f"patch {patch.id[:12]} does not hold what GRACE keeps of its edits"
        codebooks = [each for each in patch.operations if isinstance(each, ModuleOperation) and each.kind == KIND]
        if len(patch.states()) > 1 or len(codebooks) != 1:
            raise InputError(
                f"patch {patch.id[:12]} was joined from several, each a codebook of its own, so single edits cannot be "
                "taken out of it; take them out of the patches it was joined from"
            )
        live, kept, config = codebooks[0].tensors, patch.state.tensors, patch.state.config
        check_codebook(live)
        try:
            log = tuple(Admission(**edit) for edit in config["edits"])
            rules = Rules.of(hparams, float(config["slack"]))
            key_labels = unpacked(kept["key_label_tokens"], kept["key_label_offsets"])
            labels = unpacked(kept["label_tokens"], kept["label_offsets"])
            queries = put_together(kept["queries"], kept["query_source"], live["keys"])
            after = put_together(kept["values"], kept["value_source"], live["values"])
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise PatchFormatError(f"{what} ({error}); it was made by another version") from error
        if not len(log) == len(labels) == len(queries) == len(after) or len(key_labels) != len(live["keys"]):
            raise PatchFormatError(f"{what}: its {len(log)} edits are not complete")
        book = Book(rules, live["keys"], live["radii"], key_labels)
        return cls(book, live["values"].clone(), log, tuple(labels), queries, after)

    def admitted(self, queries: Tensor, labels: Sequence[Label]) -> tuple[Record, tuple[Admission, ...]]:
        """The record with more edits in its book, whose values are still to come (zeros), and what they did."""
        book = Book(self.book.rules, self.book.keys, self.book.radii, self.book.labels) if len(self.book) else self.book
        done = tuple(book.admit(query, label) for query, label in zip(queries, labels, strict=True))
        values = torch.cat([self.values, self.values.new_zeros(len(book) - len(self.values), self.values.shape[1])])
        after = torch.cat([self.after, self.after.new_zeros(len(done), self.after.shape[1])])
        more = Record(
            book,
            values,
            (*self.log, *done),
            (*self.labels, *labels),
            torch.cat([self.queries, queries.float()]),
            after,
        )
        return more, done

    def without(self, edits: Sequence[int]) -> tuple[Record, list[Shared]]:
        """The record as if some edits (by number) had never been in it: the log of the others is replayed.

        Also the edits, in order, whose value was not trained on top of all those that they share it with now; each is
        to be trained anew, from where the one before it ends (see :meth:`settle`).
        """
        kept = [i for i in range(len(self.log)) if i not in set(edits)]
        empty = Record.empty(self.book.rules, self.queries.shape[1], self.values.shape[1])
        found, _ = empty.admitted(self.queries[kept], [self.labels[i] for i in kept])
        found = evolve(found, after=self.after[kept])
        found.settle()
        before = _sharing(self.log)
        anew = [
            Shared(number, own[-2])
            for number, own in enumerate(_sharing(found.log))
            if not {kept[each] for each in own} <= set(before[kept[number]])
        ]
        return found, anew

    def settle(self) -> None:
        """Give every key the value that its last edit ended with."""
        for admission, value in zip(self.log, self.after, strict=True):
            self.values[admission.key] = value

    def operation(self, place: str, config: dict[str, Any]) -> ModuleOperation:
        """What goes on the model."""
        tensors = {"keys": self.book.keys, "values": self.values, "radii": self.book.radii}
        return ModuleOperation(places=(place,), kind=KIND, config=config, tensors=tensors)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is kept beside it: JSON, and tensors without the rows that the operation has."""
        where = torch.tensor([admission.key for admission in self.log], dtype=torch.int64)
        queries, query_source = split_off(self.queries, self.book.keys, where)
        values, value_source = split_off(self.after, self.values, where)
        label_tokens, label_offsets = packed(self.labels)
        key_tokens, key_offsets = packed(self.book.labels)
        log = [{"case": each.case, "key": each.key, "near": each.near, "distance": each.distance} for each in self.log]
        return {"edits": log, "slack": self.book.rules.slack}, {
            "queries": queries,
            "query_source": query_source,
            "values": values,
            "value_source": value_source,
            "label_tokens": label_tokens,
            "label_offsets": label_offsets,
            "key_label_tokens": key_tokens,
            "key_label_offsets": key_offsets,
        }


def _sharing(log: Sequence[Admission]) -> list[tuple[int, ...]]:
    """For each edit the edits that its value had been trained on when it was through, itself last."""
    now: dict[int, tuple[int, ...]] = {}
    found = []
    for number, admission in enumerate(log):
        now[admission.key] = (*(() if admission.begins else now[admission.key]), number)
        found.append(now[admission.key])
    return found
