"""Many edits made apart, read in one batch: the same strings and log-probabilities as one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from kedit_core.errors import InputError
from kedit_core.evaluation import PROTOCOLS, Answers, read_together
from kedit_core.forward import TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import ADAPTERS
from kedit_core.patches import DenseDelta, EditPatch, LowRankDelta, Operation, PatchStack
from kedit_core.patches.row_branches import RowBranches, row_fault
from kedit_core.requests import EditRequest, Probe
from kedit_core.testing.tiny import tiny

PROMPTS = [
    "The capital of France is",
    "Paris",
    "She was born in the city of",
    "Norway's language",
    "A",
    "Who wrote it?",
]
PAIRS = [(prompt, target) for prompt in PROMPTS for target in ("Oslo", "New York")]
FAMILIES = ("gpt2", "llama", "opt", "gpt_neox", "t5")


class Bench:
    """A tiny model with a stack, and patches of different ranks at different layers that change its answers."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        self.model, tokenizer = tiny(family, dtype=dtype)
        self.view = AdapterRegistry(ADAPTERS).for_model(self.model)
        self.boundary = TokenBoundary(tokenizer, encoder_decoder=self.view.is_encoder_decoder)
        self.stack = PatchStack.of(self.model, view=self.view)
        self.generator = torch.Generator().manual_seed(7)

    def answers(self) -> Answers:
        return Answers(self.model, self.view, self.boundary, stack=self.stack)

    def delta(self, layer: int, rank: int, attention: bool = False) -> LowRankDelta:
        place = self.view.attn_out_weight(layer) if attention else self.view.mlp_out_weight(layer)
        wide = self.view.attn_size(layer) if attention else self.view.mlp_size(layer)
        left = torch.randn(self.view.hidden_size, rank, generator=self.generator)
        return LowRankDelta(place, left, 0.3 * torch.randn(rank, wide, generator=self.generator))

    def patch(self, *operations: Operation) -> EditPatch:
        return EditPatch.build(
            method={"name": "m", "distribution": "d", "version": "0"},
            base=self.stack.base_of(operations),
            operations=operations,
        )

    def patches(self) -> list[EditPatch]:
        return [
            self.patch(self.delta(0, 1)),
            self.patch(self.delta(1, 3), self.delta(0, 2)),
            self.patch(self.delta(1, 1, attention=True), self.delta(1, 1)),
            self.patch(self.delta(0, 1)),
        ]


class Closed:
    """Reads nothing."""

    def __getattr__(self, name: str) -> Any:
        def read(*_: Any, **__: Any) -> Any:
            raise AssertionError(f"{name} was read again")

        return read


def ask(answers: Answers, prompts: Sequence[str], pairs: Sequence[tuple[str, str]]) -> tuple[Any, ...]:
    return (
        answers.generate(prompts, max_new_tokens=12),
        answers.raw_generate(prompts, 8),
        answers.sample(prompts, total_tokens=20),
        answers.target_tokens(pairs),
        answers.written_tokens(pairs),
        answers.target_logprobs(pairs),
    )


def same(found: tuple[Any, ...], wanted: tuple[Any, ...]) -> None:
    assert found[:-1] == wanted[:-1]
    for one, two in zip(found[-1], wanted[-1], strict=True):
        torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_each_row_sees_its_own_edit(family: str) -> None:
    bench = Bench(family)
    patches = bench.patches()
    asked, reader = [], bench.answers()
    for number in range(len(patches)):
        # not all edits are asked the same, and some questions are asked twice
        with reader.noting() as questions:
            blank = ask(reader, PROMPTS[number:], PAIRS[: 4 + number])
            ask(reader, PROMPTS[-1:], PAIRS[:1])
        assert blank[0] == [""] * len(PROMPTS[number:])
        asked.append(questions)
    known = read_together(RowBranches(bench.model, bench.stack.scope, patches), asked)
    texts = set()
    for number, patch in enumerate(patches):
        bench.stack.apply(patch)
        wanted = ask(bench.answers(), PROMPTS[number:], PAIRS[: 4 + number])
        supplied = bench.answers()
        supplied.supply(known[number])
        supplied._model = Closed()  # type: ignore[assignment]  # all is there: nothing is read again
        same(ask(supplied, PROMPTS[number:], PAIRS[: 4 + number]), wanted)
        texts.add(tuple(wanted[1][-2:]))
        bench.stack.remove(patch)
    unedited = ask(bench.answers(), PROMPTS, PAIRS)
    assert len(texts | {tuple(unedited[1][-2:])}) > 2, "the edits change what is said, and each otherwise"


def test_each_row_sees_its_own_edit_also_where_prompts_are_read_apart() -> None:
    """As they are while a module operation is on the model."""
    bench = Bench("gpt2")
    patches, asked, reader = bench.patches(), [], bench.answers()
    for number in range(len(patches)):
        with reader.noting() as questions:
            ask(reader, PROMPTS[number:], PAIRS)
        asked.append(questions)
    branches = RowBranches(bench.model, bench.stack.scope, patches)
    at_once = read_together(branches, asked)
    bench.stack.scope.attach(bench.model, bench.view)
    try:
        apart = read_together(branches, asked)
    finally:
        bench.stack.scope.detach()
    for number, (one, two) in enumerate(zip(at_once, apart, strict=True)):
        found = [bench.answers(), bench.answers()]
        for answers, known in zip(found, (one, two), strict=True):
            answers.supply(known)
        same(*(ask(answers, PROMPTS[number:], PAIRS) for answers in found))


def test_other_patches_stay_on_underneath() -> None:
    bench = Bench("llama")
    below, *patches = bench.patches()
    bench.stack.apply(below)
    reader = bench.answers()
    asked = []
    for _ in patches:
        with reader.noting() as questions:
            reader.raw_generate(PROMPTS, 8)
        asked.append(questions)
    known = read_together(RowBranches(bench.model, bench.stack.scope, patches), asked)
    for patch, found in zip(patches, known, strict=True):
        bench.stack.apply(patch)
        assert [found[("raw", 8, False), prompt] for prompt in PROMPTS] == bench.answers().raw_generate(PROMPTS, 8)
        bench.stack.remove(patch)


def test_questions_of_the_protocols_are_all_asked_ahead() -> None:
    """What the core's metrics read of an edit is what its hook asked for, under every protocol."""
    from kedit_core.evaluation import core_metrics, prefetch

    bench = Bench("gpt2")
    request = EditRequest(
        prompt=PROMPTS[0],
        target_new="Oslo",
        rephrase_prompts=(PROMPTS[1],),
        locality={"near": (Probe(prompt=PROMPTS[2], answers=("Bergen",)), Probe(prompt=PROMPTS[3]))},
        portability={"hop": (Probe(prompt=PROMPTS[4], answers=("Norway", "Norge")),)},
    )
    reader, base = bench.answers(), bench.answers()
    with reader.noting() as questions:
        prefetch(reader, [request], PROTOCOLS)
    (patch,) = [bench.patch(bench.delta(0, 1))]
    (known,) = read_together(RowBranches(bench.model, bench.stack.scope, [patch]), [questions])
    before = core_metrics([request], base, base, protocols=PROTOCOLS, scenario="single", way=None)
    bench.stack.apply(patch)
    wanted = core_metrics([request], base, bench.answers(), protocols=PROTOCOLS, scenario="single", way=None)
    supplied = bench.answers()
    supplied.supply(known)
    supplied._model = Closed()  # type: ignore[assignment]
    found = core_metrics([request], base, supplied, protocols=PROTOCOLS, scenario="single", way=None)
    assert found == wanted != before


def test_patches_that_are_no_branches_are_refused() -> None:
    bench = Bench("gpt2")
    place = bench.view.mlp_out_weight(0)
    dense = bench.patch(DenseDelta(place, torch.zeros(32, 80)))
    assert row_fault(bench.model, bench.patch(bench.delta(0, 1))) is None
    assert row_fault(bench.model, dense) == "it holds a dense_delta"
    with pytest.raises(InputError, match="cannot act on some rows of a batch only: it holds a dense_delta"):
        RowBranches(bench.model, bench.stack.scope, [dense])


def test_rows_that_nobody_knows_are_refused_and_hooks_come_off() -> None:
    bench = Bench("gpt2")
    branches = RowBranches(bench.model, bench.stack.scope, bench.patches()[:1])
    ids = torch.tensor([bench.boundary.prompt("Paris").ids])
    before = bench.model(ids).logits
    with pytest.raises(InputError, match="rows of this run are not known"), branches.on([0]):
        bench.model(ids)
    assert torch.equal(bench.model(ids).logits, before)
