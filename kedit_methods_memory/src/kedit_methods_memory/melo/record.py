"""What a MELO patch keeps of each edit, so that later batches go on from it and single edits can be taken out again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.errors import InputError, PatchFormatError
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_methods_memory.melo.database import Admission, Database, Label
from kedit_methods_memory.melo.kind import check_blocks
from kedit_methods_memory.melo.training import Block
from kedit_methods_memory.nearest import nearest
from kedit_methods_memory.ragged import packed, unpacked
from kedit_methods_memory.rows import put_together, split_off

KIND = "melo.blocks"


@frozen(eq=False)
class Record:
    """A database and its blocks with their history.

    Attributes:
        database: clusters as they are now.
        blocks: in the order of their batches.
        log: what each edit did, in order.
        labels: each edit's.
        queries: ``[edits, d]`` float32, what each edit was read as.
    """

    database: Database
    blocks: tuple[Block, ...]
    log: tuple[Admission, ...]
    labels: tuple[Label, ...]
    queries: Tensor

    @classmethod
    def empty(cls, radius: float, width: int, slack: float) -> Record:
        """No edit yet; ``slack`` as in :class:`Database`."""
        return cls(Database(radius, slack=slack), (), (), (), torch.empty(0, width))

    @classmethod
    def of(cls, patch: EditPatch, radius: float) -> Record:
        """Read back what :meth:`operation` and :meth:`state` wrote.

        Raises PatchFormatError for a patch that lacks some of it, InputError for one that was joined from several.
        """
        found = [each for each in patch.operations if isinstance(each, ModuleOperation) and each.kind == KIND]
        if len(patch.states()) > 1 or len(found) != 1:
            raise InputError(
                f"patch {patch.id[:12]} was joined from several, each a database of its own, so single edits cannot be "
                "taken out of it; take them out of the patches it was joined from"
            )
        check_blocks(found[0])
        live, kept, config = dict(found[0].tensors), patch.state.tensors, patch.state.config
        targets = len(found[0].places) - 1
        try:
            log = tuple(Admission(**edit) for edit in config["edits"])
            labels = unpacked(kept["label_tokens"], kept["label_offsets"])
            cluster_labels = unpacked(kept["cluster_label_tokens"], kept["cluster_label_offsets"])
            queries = put_together(kept["queries"], kept["query_source"], live["points"])
            losses, slack = [tuple(each) for each in config["losses"]], float(config["slack"])
            blocks = tuple(
                Block(
                    tuple(live[f"a.{i}"][number] for i in range(targets)),
                    tuple(live[f"b.{i}"][number] for i in range(targets)),
                    losses[number],
                )
                for number in range(len(live["a.0"]))
            )
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise PatchFormatError(
                f"patch {patch.id[:12]} does not hold what MELO keeps of its edits ({error}); it was made by another "
                "version"
            ) from error
        if not len(log) == len(labels) == len(queries) or len(cluster_labels) != len(live["centres"]):
            raise PatchFormatError(f"patch {patch.id[:12]} does not hold all of its {len(log)} edits")
        return cls(Database.of(radius, live, cluster_labels, slack), blocks, log, tuple(labels), queries)

    def batches(self) -> list[list[int]]:
        """The edits of each block, by number."""
        return [[i for i, each in enumerate(self.log) if each.block == block] for block in range(len(self.blocks))]

    def grown(self, queries: Tensor, labels: Sequence[Label], block: Block) -> Record:
        """The record with one more batch; the database of this one changes with it, so use the new one only."""
        done = self.database.admit(queries, labels, len(self.blocks))
        return Record(
            self.database,
            (*self.blocks, block),
            (*self.log, *done),
            (*self.labels, *labels),
            torch.cat([self.queries, queries.float()]),
        )

    def operation(self, scope: str, targets: Sequence[str], factor: float) -> ModuleOperation:
        """What goes on the model."""
        adapters = {}
        for i in range(len(targets)):
            adapters[f"a.{i}"] = torch.stack([block.a[i].float() for block in self.blocks])
            adapters[f"b.{i}"] = torch.stack([block.b[i].float() for block in self.blocks])
        tensors = {**self.database.tensors(), **adapters}
        return ModuleOperation(places=(scope, *targets), kind=KIND, config={"factor": factor}, tensors=tensors)

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """What is kept beside it: JSON, and tensors without the rows that the operation has."""
        points = self.database.tensors()["points"]
        queries, source = split_off(self.queries, points, nearest(self.queries, points).index)
        tokens, offsets = packed(self.labels)
        cluster_tokens, cluster_offsets = packed([cluster.label for cluster in self.database.clusters])
        log = [
            {
                "case": each.case,
                "cluster": each.cluster,
                "block": each.block,
                "near": each.near,
                "distance": each.distance,
                "forgotten": each.forgotten,
            }
            for each in self.log
        ]
        config = {
            "edits": log,
            "losses": [list(block.losses) for block in self.blocks],
            "next_block": len(self.blocks),
            "slack": self.database.slack,
            "conflicts": sum(each.case in ("conflict", "overwritten") for each in self.log),
            "forgotten": sum(each.forgotten for each in self.log),
        }
        return config, {
            "queries": queries,
            "query_source": source,
            "label_tokens": tokens,
            "label_offsets": offsets,
            "cluster_label_tokens": cluster_tokens,
            "cluster_label_offsets": cluster_offsets,
        }
