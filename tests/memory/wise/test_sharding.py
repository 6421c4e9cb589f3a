"""Many edits: shards, merges, retrieval among memories, replay, and what of the model they touch (nothing)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attrs import evolve
from memory.wise.wise_tools import REQUESTS, TEMPLATES, bank_of, editor_on
from torch import Tensor

from kedit_core import EditPatch
from kedit_core.errors import HyperParamsError
from kedit_methods_memory.hparams.wise import WiseHyperParams
from kedit_methods_memory.projections import projection
from kedit_methods_memory.wise.lesson import read_prompts
from kedit_methods_memory.wise.memories import Bank, Memory
from kedit_methods_memory.wise.merging import MergeRule, merged
from kedit_methods_memory.wise.replay import Replay
from kedit_methods_memory.wise.sharding import all_in_one, generator_for, settled, subspace

FEW: dict[str, Any] = {"n_iter": 2, "save_freq": 2, "merge_freq": 4, "rho": 0.3}


def shard(number: int, edits: int = 2, a_min: float = 2.0) -> Memory:
    generator = torch.Generator().manual_seed(number)
    return Memory.of(torch.randn(4, 6, generator=generator) * subspace((4, 6), 0.5, 0, number), a_min, edits)


def test_the_course_of_a_sequence() -> None:
    requests = [evolve(REQUESTS[i % 4], case_id=str(i), prompt=f"{REQUESTS[i % 4].prompt} {i}") for i in range(11)]
    editor = editor_on("gpt2", **FEW)
    seen: list[tuple[bool, int, int, int]] = []

    def look(patch: EditPatch, _: Any) -> None:
        bank = bank_of(patch)
        seen.append((bank.open is not None, len(bank.pending), len(bank.merged), bank.shards))

    result = editor.edit(requests, scenario="sequential", evaluate=False, on_patch=look)
    assert seen == [
        (True, 0, 0, 1), (False, 1, 0, 1), (True, 1, 0, 2), (False, 0, 1, 2),
        (True, 0, 1, 3), (False, 1, 1, 3), (True, 1, 1, 4), (False, 0, 2, 4),
        (True, 0, 2, 5), (False, 1, 2, 5), (True, 1, 2, 6),
    ]  # fmt: skip
    bank = bank_of(result.patch)
    assert [memory.edits for memory in bank.memories] == [4, 4, 2, 1] and bank.edits == 11 and bank.merges == 2
    assert [fact["case_id"] for fact in result.patch.requests] == [str(i) for i in range(11)]
    inside = [edit["inside"] for edit in result.patch.state.config["edits"]]
    assert [memory.a_min for memory in bank.memories] == [
        min(inside[0:4]), min(inside[4:8]), min(inside[8:10]), inside[10]
    ]  # fmt: skip


def test_shards_have_their_own_subspaces() -> None:
    editor = editor_on("gpt2", **{**FEW, "merge_freq": 8})
    bank = bank_of(editor.edit(REQUESTS, scenario="sequential", evaluate=False).patch)
    one, other = (memory.delta() for memory in bank.pending)
    masks = [subspace((32, 80), 0.3, 0, number) for number in range(2)]
    assert not bool(one[~masks[0]].any()) and not bool(other[~masks[1]].any())
    both = (masks[0] & masks[1]).double().mean()
    assert float(both) == pytest.approx(0.09, abs=0.02)  # the overlap of independent masks


def test_a_merge_is_that_of_its_shards() -> None:
    hparams = WiseHyperParams(layer=0, save_freq=2, merge_freq=4, density=0.7, weights=0.8)
    bank = settled(Bank(open=shard(1), pending=(shard(0, a_min=3.0),), shards=2, edits=4), hparams, 0)
    (made,) = bank.merged
    wanted = merged([shard(0).delta(), shard(1).delta()], [0.4, 0.4], MergeRule.of(hparams), generator_for(0))
    assert torch.equal(made.delta(), wanted) and made.a_min == 2.0 and made.edits == 4
    assert bank.open is None and bank.pending == () and bank.merges == 1


def test_merging_all_into_one_gives_what_was_merged_before_the_greater_weight() -> None:
    hparams = WiseHyperParams(layer=0, save_freq=2, merge_freq=4, merge_alg="linear", retrieve=False)
    first = settled(Bank(open=shard(1), pending=(shard(0),), shards=2, edits=4), hparams, 0)
    (before,) = first.merged
    torch.testing.assert_close(before.delta(), (shard(0).delta() + shard(1).delta()) / 2)
    (after,) = settled(evolve(first, open=shard(3), pending=(shard(2),), shards=4, edits=8), hparams, 0).merged
    wanted = 0.2 * shard(2).delta() + 0.2 * shard(3).delta() + 0.6 * before.delta()
    torch.testing.assert_close(after.delta(), wanted)
    assert after.edits == 8
    unfinished = all_in_one(evolve(first, open=shard(5, edits=1)), MergeRule.of(hparams), 0)
    torch.testing.assert_close(unfinished.delta(), 0.4 * shard(5).delta() + 0.6 * before.delta())


@pytest.mark.parametrize(("retrieve", "algorithm"), [(True, "ties"), (False, "dare_ties"), (False, "slerp")])
def test_the_main_weight_is_never_touched(retrieve: bool, algorithm: str, tmp_path: Any) -> None:
    """Acceptance check 3, through shards, merges and a file."""
    _never_touched(12, 1, tmp_path, **{**FEW, "n_iter": 1}, retrieve=retrieve, merge_alg=algorithm)


@pytest.mark.slow
def test_the_main_weight_is_not_touched_by_a_thousand_edits(tmp_path: Any) -> None:
    """Acceptance check 3: 20 shards, 10 merges."""
    settings: dict[str, Any] = {"n_iter": 1, "save_freq": 50, "merge_freq": 100, "context_templates": ["{}"]}
    bank = _never_touched(1000, 50, tmp_path, **settings)
    assert len(bank.merged) == 10 and bank.edits == 1000


def _never_touched(count: int, batch_size: int, folder: Any, **settings: Any) -> Bank:
    editor = editor_on("gpt2", **settings)
    before = editor.stack.weights_digest()
    requests = [evolve(REQUESTS[i % 4], prompt=f"{i} {REQUESTS[i % 4].prompt}") for i in range(count)]
    patch = editor.edit(requests, scenario="sequential", batch_size=batch_size, evaluate=False).patch
    assert editor.stack.weights_digest() == before
    patch.save(folder / "patch.safetensors")
    editor.restore()
    editor.apply(EditPatch.load(folder / "patch.safetensors"))
    assert editor.generate("The capital of France is", max_new_tokens=2)
    assert editor.stack.weights_digest() == before
    return bank_of(patch)


def test_replay_holds_earlier_prompts_down() -> None:
    """After a merge, prompts of earlier groups react less to the shard in the making than without replay."""
    found = {}
    settings: dict[str, Any] = {"n_iter": 10, "lr": 0.1, "act": "none", "save_freq": 1, "merge_freq": 1}
    for replay in (False, True):
        editor = editor_on("gpt2", torch.float64, **settings, replay=replay, replay_low=0.1, replay_high=1.0)
        patch = editor.edit(REQUESTS[:2], scenario="sequential", evaluate=False).patch
        assert [edit["group"] for edit in patch.state.config["edits"]] == [0, 1]
        plain = editor_on("gpt2", torch.float64)
        read = read_prompts(plain.forward, projection(plain.adapter, 1, "mlp_out"), REQUESTS[:1], TEMPLATES)
        found[replay] = read.activations(read.change(bank_of(patch).merged[-1].delta()), None).mean()
    assert float(found[True]) < 0.8 * float(found[False])


def test_the_loss_of_replay_is_that_of_its_prompts() -> None:
    editor = editor_on("gpt2", torch.float64)
    place = projection(editor.adapter, 1, "mlp_out")
    delta = torch.randn(32, 80, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def reaction(request: Any, free: Tensor) -> Tensor:
        read = read_prompts(editor.forward, place, [request], TEMPLATES)
        return torch.stack(
            [(row[mask] @ free.T).norm(dim=-1).mean() for row, mask in zip(read.value, read.prompt, strict=True)]
        )

    at = reaction(REQUESTS[1], delta)
    low, high = float(at.sort().values[:2].mean()), float(reaction(REQUESTS[3], delta).max()) + 1
    replay = Replay(
        editor.forward, place, TEMPLATES, None, [REQUESTS[:2], REQUESTS[2:3]], REQUESTS[3:], low, high, 4,
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    loss, gradient = replay(delta, 1)  # the fifth step: the second of the first group, the only one of the second
    free = delta.clone().requires_grad_()
    down = torch.zeros((), dtype=torch.float64)
    for request in (REQUESTS[1], REQUESTS[2]):
        over = [each - low for each in reaction(request, free) if float(each.detach()) > low]
        down = down + (sum(over) / len(over) if over else 0.0) / 2
    wanted = down + (high - reaction(REQUESTS[3], free)).mean()
    assert loss == pytest.approx(float(wanted.detach()))
    torch.testing.assert_close(gradient, torch.autograd.grad(wanted, free)[0], rtol=0, atol=1e-8)


def test_a_round_is_never_split_among_shards() -> None:
    editor = editor_on("gpt2", **{**FEW, "merge_freq": 8})
    bank = bank_of(editor.edit(REQUESTS, scenario="sequential", batch_size=3, evaluate=False).patch)
    assert [memory.edits for memory in bank.memories] == [3, 1] and len(bank.pending) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"save_freq": 3, "merge_freq": 4}, "multiple"),
        ({"replay": True, "retrieve": False}, "retrieve"),
        ({"density": 0.0}, "density"),
        ({"context_templates": ["I know {}"]}, "bare"),
        ({"norm_constraint": 0.0}, "limit"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(HyperParamsError, match=said):
        editor_on("gpt2", **settings)
