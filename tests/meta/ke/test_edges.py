"""What may go wrong: long and empty texts, tokenizers without a pad, answers already given, half precision."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from ke_tools import FEW, answer_logits, descending, editor_on, trained, trainer_on
from meta_tools import records, stacked

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.errors import InputError
from kedit_core.testing.snapshot import weights
from kedit_core.training import train
from kedit_methods_meta.ke.condition import Sayings, answers_so_far

ONE = EditRequest(prompt="The capital of France is", subject="France", target_new="Rome", case_id="a")
TWO = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
SEVERAL = (ONE, TWO, EditRequest(prompt="Bob", subject="Bob", target_new="is a nurse in Bern", case_id="c"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("ke-edges")
    return lambda family, dtype=torch.float32: trained(
        root / f"{family}-{dtype}", family, dtype, lr=1e-2, max_scale=4.0
    )


def deltas(editor: Editor, patch: EditPatch) -> Mapping[str, torch.Tensor]:
    shapes = {
        name: tuple(parameter.shape)[::-1] if editor.adapter.layout(name) == "in_out" else tuple(parameter.shape)
        for name, parameter in editor.model.named_parameters()
        if name in patch.base.tensors
    }
    return stacked(patch.operations, shapes)


def alike(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> bool:
    return set(found) == set(wanted) and all(
        torch.allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6) for name in found
    )


# ------------------------------------------------------------------ what the model says so far


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_answers_do_not_depend_on_company_or_on_what_was_asked_before(family: str) -> None:
    context = editor_on(family).context()
    pairs = [context.tokens.pair(each.prompt, each.target_new) for each in SEVERAL]
    longer = context.tokens.pair(ONE.prompt, "Rome and Milan and Naples")
    alone = [answers_so_far(context, [pair])[0] for pair in (*pairs, longer)]
    sayings = Sayings(context, kept=2)
    assert sayings.of(pairs) == alone[:3]  # more than are kept
    assert sayings.of([longer, *pairs]) == [alone[3], *alone[:3]]
    assert sayings.of([pairs[0], longer]) == [alone[0], alone[3]]


def test_no_prompt_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from kedit_methods_meta.ke import condition

    asked: list[int] = []
    plain = condition.generate_ids

    def counted(*args: Any, **kwargs: Any) -> Any:
        asked.append(len(args[3]))
        return plain(*args, **kwargs)

    monkeypatch.setattr(condition, "generate_ids", counted)
    context = editor_on("gpt2").context()
    pairs = [context.tokens.pair(each.prompt, each.target_new) for each in SEVERAL]
    sayings = Sayings(context)
    sayings.of(pairs[:2])
    sayings.of(pairs)
    sayings.of(pairs[::-1])
    assert asked == [2, 1]
    sayings.of([context.tokens.pair(ONE.prompt, "Rome and Milan and Naples")])
    assert asked == [2, 1, 1], "a longer answer has to be asked for"


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_model_that_says_nothing_can_be_edited_and_trained_on(family: str, folders: Any, tmp_path: Path) -> None:
    folder = folders(family)
    editor = editor_on(family, folder)
    context = editor.context()
    pair = context.tokens.pair(ONE.prompt, ONE.target_new)
    first = int(answer_logits(context, pair)[0].argmax())
    editor.model.generation_config.eos_token_id = first  # it ends at once
    assert answers_so_far(editor.context(), [pair]) == [""]
    assert editor.compute([ONE]).operations
    trainer = trainer_on(family, unrelated=2)
    trainer.context.model.generation_config.eos_token_id = list(range(trainer.context.adapter.vocab_size))
    batch = trainer.draw([0], torch.Generator().manual_seed(1))
    rows = trainer._rows(batch, [trainer.pair(*batch.examples[0].inner)])
    assert all(pair.target_ids for pair in rows.pairs)
    assert bool(torch.isfinite(trainer.run_step(batch).total))


# ------------------------------------------------------------------ texts


def test_what_stands_behind_the_texts_end_is_not_read(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 1})
    long = evolve(ONE, prompt="one two three four five six seven eight nine ten " * 2 + "is", subject=None)
    patch = editor.compute([long])
    folder_tokens = 32
    [text] = patch.state.config["conditions_sha256"]
    assert len(editor.tokenizer(f"x >> Rome || {long.prompt}")["input_ids"]) > folder_tokens
    assert text and patch.operations


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_tokenizers_without_a_pad_will_do(family: str, tmp_path: Path) -> None:
    editor = editor_on(family)
    editor.tokenizer.pad_token = None
    assert editor.tokenizer.pad_token_id is None
    folder = tmp_path / "e"
    train(editor, records(8), folder, {**FEW, "batch_size": 2}, validation=records(3, 20))
    padded = editor_on(family, folder)
    bare = editor_on(family, folder)
    bare.tokenizer.pad_token = None
    before = weights(bare.model)
    found = deltas(bare, bare.compute(list(SEVERAL)))
    assert weights(bare.model) == before and found
    assert alike(found, deltas(padded, padded.compute(list(SEVERAL)))), "pads are not read"


# ------------------------------------------------------------------ edits


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_requests_order_and_portions_do_not_matter(family: str, folders: Any) -> None:
    wanted: Mapping[str, torch.Tensor] = {}
    for order, portion in ((SEVERAL, None), (SEVERAL[::-1], None), (SEVERAL, 1), (SEVERAL[::-1], 2)):
        editor = editor_on(family, folders(family), hparams={"portion": portion})
        found = deltas(editor, editor.compute(list(order)))
        wanted = wanted or found
        assert alike(found, wanted)


@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_a_dropped_fact_leaves_what_the_others_alone_make(family: str, folders: Any) -> None:
    editor = editor_on(family, folders(family))
    both = editor.edit([ONE, TWO], scenario="batch", evaluate=False).patch
    left = editor.drop(both, ONE.id)
    editor.restore()
    fresh = editor_on(family, folders(family))
    assert left.to_bytes() == fresh.compute([TWO]).to_bytes()
    rounds = fresh.edit([ONE, TWO], scenario="sequential", evaluate=False).patch
    with pytest.raises(InputError, match="2 rounds"):
        fresh.drop(rounds, ONE.id)


@pytest.mark.parametrize(
    ("family", "dtype"), [("gpt2", torch.float16), ("llama", torch.bfloat16), ("t5", torch.bfloat16)]
)
def test_every_scenario_comes_off_bit_by_bit(family: str, dtype: torch.dtype, folders: Any, tmp_path: Path) -> None:
    editor = editor_on(family, folders(family, dtype), dtype)
    before = weights(editor.model)
    for scenario in ("batch", "sequential"):
        result = editor.edit(list(SEVERAL), scenario=scenario, evaluate=False)
        after = weights(editor.model)
        assert after != before
        editor.restore()
        assert weights(editor.model) == before
        result.patch.save(tmp_path / scenario)
        again = EditPatch.load(tmp_path / scenario)
        with editor.applied(again):
            assert weights(editor.model) == after
        assert weights(editor.model) == before
    codes = [each.code for each in result.warnings]
    assert ("half_precision_gradients" in codes) == (dtype == torch.float16)


def test_rounds_after_a_removed_one_read_the_weights_as_they_are(folders: Any) -> None:
    editor = editor_on("gpt2", folders("gpt2"), hparams={"iterations": 1})
    alone = deltas(editor, editor.compute([TWO]))
    editor.edit([ONE], evaluate=False)
    on_top = deltas(editor, editor.compute([TWO]))
    editor.restore()
    assert not alike(on_top, alone) and alike(deltas(editor, editor.compute([TWO])), alone)


@pytest.mark.parametrize("again", ["recompute", "same"])
@pytest.mark.parametrize("family", ["gpt2", "t5"])
def test_applying_it_again_leaves_the_model_as_found(family: str, again: str, folders: Any, tmp_path: Path) -> None:
    folder = descending(tmp_path / "d", folders(family), 0.01)
    editor = editor_on(family, folder, hparams={"iterations": 4, "again": again})
    before = weights(editor.model)
    patch = editor.compute([ONE])
    assert 1 < patch.state.config["iterations"] <= 4
    assert weights(editor.model) == before
