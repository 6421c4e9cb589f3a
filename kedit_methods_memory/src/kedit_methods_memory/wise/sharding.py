"""When a shard is full, when shards are merged, and which entries a shard may change."""

from __future__ import annotations

import hashlib

import torch
from attrs import evolve
from torch import Tensor

from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.wise.memories import Bank, Memory
from kedit_methods_memory.wise.merging import MergeRule, merged

_NEW, _OLD = 0.4, 0.6  # WISE-Merge: what new shards weigh together, and what was merged before


def generator_for(seed: int, *what: object) -> torch.Generator:
    """A CPU generator that follows from the seed and what it is for alone."""
    digest = hashlib.sha256("\0".join(["wise", str(seed), *map(str, what)]).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def subspace(shape: tuple[int, int], rho: float, seed: int, shard: int) -> Tensor:
    """``[out, in]`` bool: the entries of a shard's random subspace, each in it with probability ``rho``."""
    return torch.rand(shape, generator=generator_for(seed, "mask", shard)) < rho


def settled(bank: Bank, hparams: WiseHyperParams, seed: int) -> Bank:
    """The bank with its open shard put away if it is full, and shards merged if there are enough.

    A round of many edits is never split, so a shard may hold more than ``save_freq``.
    """
    if bank.open is None or bank.open.edits < hparams.save_freq:
        return bank
    bank = evolve(bank, open=None, pending=(*bank.pending, bank.open))
    if len(bank.pending) < hparams.merged_shards:
        return bank
    rule = MergeRule.of(hparams)
    if hparams.retrieve:
        count = len(bank.pending)
        made = _merge(bank.pending, [rule.weights / count] * count, rule, seed, bank.merges)
        return evolve(bank, pending=(), merged=(*bank.merged, made), merges=bank.merges + 1)
    return evolve(bank, pending=(), merged=(all_in_one(bank, rule, seed),), merges=bank.merges + 1)


def all_in_one(bank: Bank, rule: MergeRule, seed: int) -> Memory:
    """WISE-Merge: everything in the bank merged into one memory, the shard in the making included."""
    shards = (*bank.pending, *(() if bank.open is None else (bank.open,)))
    count = len(shards)
    if not bank.merged:
        return _merge(shards, [rule.weights / count] * count, rule, seed, bank.merges)
    return _merge((*shards, *bank.merged), [*[_NEW / count] * count, _OLD], rule, seed, bank.merges)


def _merge(memories: tuple[Memory, ...], weights: list[float], rule: MergeRule, seed: int, number: int) -> Memory:
    made = merged([memory.delta() for memory in memories], weights, rule, generator_for(seed, "merge", number))
    lowest = min(memory.a_min for memory in memories)
    return Memory.of(made, lowest, sum(memory.edits for memory in memories))
