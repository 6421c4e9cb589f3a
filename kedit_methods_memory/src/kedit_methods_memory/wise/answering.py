"""Which memories of a bank may answer, and when: what an operation says beside its memories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from attrs import asdict, frozen
from torch import Tensor

from kedit_core.errors import PatchFormatError
from kedit_methods_memory.hparams.wise import MergeAlgorithm, WiseHyperParams
from kedit_methods_memory.wise.memories import Bank, Memory
from kedit_methods_memory.wise.merging import MergeRule
from kedit_methods_memory.wise.routing import retrieved, strongest
from kedit_methods_memory.wise.sharding import all_in_one


@frozen
class Answering:
    """How memories answer.

    Attributes:
        act_ratio: share of the weakest edit's routing activation at which a memory fires.
        long_max: prompts of more than 100 tokens react as strongly as their strongest token.
        merge: how all memories are made one (WISE-Merge); None keeps them side by side (WISE-Retrieve).
        save_freq: edits of a full shard: WISE-Merge merges once there is one.
        seed: of a merge that draws.
    """

    act_ratio: float
    long_max: bool
    merge: MergeRule | None
    save_freq: int
    seed: int

    @classmethod
    def of(cls, hparams: WiseHyperParams, seed: int) -> Answering:
        """As the settings have it."""
        merge = None if hparams.retrieve else MergeRule.of(hparams)
        return cls(hparams.act_ratio, hparams.long_prompts == "max", merge, hparams.save_freq, seed)

    def config(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> Answering:
        """What :meth:`config` gave, among other things. Raises PatchFormatError for anything else."""
        try:
            found = cls(**{name: config[name] for name in cls.__annotations__})
            if found.merge is not None:
                found = cls(**{**found.config(), "merge": MergeRule(**config["merge"])})
        except (KeyError, TypeError) as error:
            raise PatchFormatError(f"the patch does not say how its side memories answer ({error})") from error
        sound = (
            type(found.act_ratio) in (int, float)
            and type(found.long_max) is bool
            and type(found.save_freq) is int
            and type(found.seed) is int
            and (found.merge is None or found.merge.algorithm in get_args(MergeAlgorithm))
        )
        if not sound:
            raise PatchFormatError(f"side memories cannot answer as {found.config()}; the patch was not made by kedit")
        return found

    def memories(self, bank: Bank) -> tuple[tuple[Memory, ...], bool]:
        """The memories that may answer, and whether the last is the shard in the making.

        WISE-Merge has but one merged memory; what is not merged yet joins it as soon as there is a full shard.
        """
        if self.merge is None or bank.edits < self.save_freq:
            return bank.memories, bank.open is not None
        if not bank.pending and bank.open is None:
            return bank.merged, False
        return (all_in_one(bank, self.merge, self.seed),), False

    def choice(self, activations: Sequence[Tensor], memories: Sequence[Memory], opened: bool) -> Tensor:
        """``[rows]`` the number of the memory that answers each row, or -1, by the routing activations of each."""
        thresholds = [self.act_ratio * memory.a_min for memory in memories]
        if self.merge is None:
            return retrieved(activations, thresholds, opened)
        return strongest(activations, min(thresholds))
