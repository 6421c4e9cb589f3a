"""Causal tracing against a plain, slow reference written from the sheet, and what must hold of any trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kedit_core import Editor
from kedit_core.editing import EditContext
from kedit_core.errors import InputError, MethodError
from kedit_core.forward import ForwardTools, Site, cells
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import FAMILIES, tiny
from kedit_methods_locate.tracing import (
    Fact,
    Trace,
    TraceSettings,
    UnknownFactError,
    average,
    resolve_noise,
    severed_kind,
    suggest_layers,
    trace,
    trace_all,
    traced_prompt,
)
from kedit_methods_locate.tracing.noise import Noise
from kedit_methods_locate.tracing.runs import FastRuns, PlainRuns, Runs, Write, corrupted_runs, read_clean

pytestmark = pytest.mark.slow

FRANCE = Fact(prompt="The capital of France is", subject="France")
MIRA = Fact(prompt="Mira Taldon was born in", subject="Mira Taldon")
FOUR = {"gpt2": {"n_layer": 4}, "llama": {"num_hidden_layers": 4}, "gpt_neox": {"num_hidden_layers": 4}}
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def context_of(family: str, dtype: torch.dtype = torch.float64, **settings: Any) -> EditContext:
    model, tokenizer = tiny(family, dtype=dtype, **FOUR.get(family, {}))
    return Editor(model, tokenizer, **settings).context()


def runs_of(
    context: EditContext,
    fact: Fact = FRANCE,
    way: Callable[..., Runs] = corrupted_runs,
    scale: float = 1.0,
    forward: ForwardTools | None = None,
    parts: Sequence[str] = ("block", "mlp", "attn_out"),
) -> Runs:
    forward = forward or context.forward
    prompt = traced_prompt(context.tokens, fact, "first")
    sites: Any = [Site(layer, part) for layer in range(forward.view.num_layers) for part in parts]  # type: ignore[arg-type]
    clean = read_clean(forward, prompt.ids, sites)
    noise = Noise(str(scale), scale, seed=1, samples=10)
    return way(
        forward, clean, prompt.corrupted, noise, clean.answer, capture=sites, memory_budget=context.memory_budget
    )


class Naive:
    """The paper's procedure by the letter: a whole pass of 11 rows with hooks for every cell; row 0 is clean."""

    def __init__(self, context: EditContext, fact: Fact, scale: float, replace: bool = False) -> None:
        view = context.adapter
        self.model: Any = context.model
        self.layers = view.num_layers
        self.modules = {
            "block": [view.block(i) for i in range(self.layers)],
            "mlp": [view.mlp(i) for i in range(self.layers)],
            "attn": [view.attn(i) for i in range(self.layers)],
        }
        self.embeddings = view.embeddings
        encoded = context.tokenizer(fact.prompt, return_offsets_mapping=True)
        self.ids = list(encoded["input_ids"])
        start = fact.prompt.index(fact.subject)
        end = start + len(fact.subject)
        inside = [i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a < b and a < end and b > start]
        self.b, self.e = inside[0], inside[-1] + 1
        self.scale, self.replace = scale, replace
        with torch.no_grad():
            first = self.model(torch.tensor([self.ids])).logits[0, -1].softmax(-1)
        self.answer = int(first.argmax())
        self.high = float(first[self.answer])
        self.low = self.run({})[0]

    def run(self, restore: dict[nn.Module, tuple[int, Tensor | None]]) -> tuple[float, dict[nn.Module, Tensor]]:
        """Mean probability over the corrupted rows; a state is restored from row 0, or from the tensor given."""
        seen: dict[nn.Module, Tensor] = {}

        def corrupt(_: nn.Module, __: Any, out: Tensor) -> Tensor:
            noise = self.scale * np.random.RandomState(1).randn(10, self.e - self.b, out.shape[-1])
            out = out.clone()
            kept = 0 if self.replace else out[1:, self.b : self.e]
            out[1:, self.b : self.e] = kept + torch.from_numpy(noise).to(out.dtype)
            return out

        def change(module: nn.Module, _: Any, out: Any) -> Any:
            hidden = (out if isinstance(out, Tensor) else out[0]).clone()
            if module in restore:
                column, given = restore[module]
                hidden[1:, column] = hidden[0, column] if given is None else given[1:, column]
            seen[module] = hidden
            return hidden if isinstance(out, Tensor) else (hidden, *out[1:])

        handles = [self.embeddings.register_forward_hook(corrupt)]
        handles += [m.register_forward_hook(change) for group in self.modules.values() for m in group]
        try:
            with torch.no_grad():
                logits = self.model(torch.tensor([self.ids] * 11)).logits[1:, -1]
        finally:
            for handle in handles:
                handle.remove()
        return float(logits.softmax(-1)[:, self.answer].double().mean()), seen

    def table(self, kind: str, window: int = 2, severed: str | None = None) -> np.ndarray[Any, Any]:
        corrupted = self.run({})[1]
        found = np.zeros((len(self.ids), self.layers))
        for t in range(len(self.ids)):
            for layer in range(self.layers):
                low, high = max(0, layer - window // 2), min(self.layers, layer - (-window // 2))
                blocks = [layer] if kind == "block" else range(low, high)
                restore: dict[nn.Module, tuple[int, Tensor | None]] = {self.modules[kind][k]: (t, None) for k in blocks}
                for module in self.modules[severed] if severed else ():
                    restore[module] = (t, corrupted[module])
                found[t, layer] = self.run(restore)[0]
        return found


# ------------------------------------------------------------------ check 7: equal to the naive computation
@pytest.mark.parametrize(
    ("family", "dtype", "window"),
    [("gpt2", torch.float64, 2), ("gpt2", torch.float32, 3), ("gpt_neox", torch.float64, 1)],
)
def test_tables_equal_the_naive_ones(family: str, dtype: torch.dtype, window: int) -> None:
    context = context_of(family, dtype)
    found = trace(context, FRANCE, TraceSettings(noise="0.5", window=window))
    naive = Naive(context, FRANCE, 0.5)
    bound = TOLERANCE[dtype]
    assert found.answer_id == naive.answer
    assert (found.high, found.low) == pytest.approx((naive.high, naive.low), abs=bound)
    for kind in ("block", "mlp", "attn"):
        wanted = naive.table(kind, window)
        np.testing.assert_allclose(found.scores[kind], wanted, rtol=0, atol=bound)
        assert np.ptp(wanted) > 1e-3  # there is something to find


def test_a_model_with_a_first_special_token_equals_the_naive_one() -> None:
    context = context_of("llama", torch.float32)
    found = trace(context, MIRA, TraceSettings(noise="0.5", window=2))
    naive = Naive(context, MIRA, 0.5)
    assert found.subjects == ((naive.b, naive.e),)
    assert found.special[0]
    for kind in ("block", "mlp", "attn"):
        np.testing.assert_allclose(found.scores[kind], naive.table(kind), rtol=0, atol=1e-5)


@pytest.mark.parametrize("module", ["mlp", "attn"])
def test_a_severed_path_equals_the_naive_one(module: Any) -> None:
    context = context_of("gpt2")
    found = trace(context, FRANCE, TraceSettings(kinds=("block",), noise="0.5", severed=(module,)))
    wanted = Naive(context, FRANCE, 0.5).table("block", severed=module)
    np.testing.assert_allclose(found.scores[severed_kind(module)], wanted, rtol=0, atol=1e-10)
    assert np.abs(found.scores[severed_kind(module)] - found.scores["block"]).max() > 1e-4


def test_noise_that_replaces_is_in_the_baseline_too() -> None:
    context = context_of("gpt2")
    found = trace(context, FRANCE, TraceSettings(kinds=("mlp",), noise="0.5", window=2, replace=True))
    naive = Naive(context, FRANCE, 0.5, replace=True)
    assert found.low == pytest.approx(naive.low, abs=1e-10)
    assert found.low != pytest.approx(Naive(context, FRANCE, 0.5).low, abs=1e-4)
    np.testing.assert_allclose(found.scores["mlp"], naive.table("mlp"), rtol=0, atol=1e-10)


@pytest.mark.parametrize("family", [name for name in FAMILIES if not name.startswith("t5")])
def test_the_fast_way_is_taken_and_equals_whole_passes(family: str) -> None:
    context = context_of(family)
    fast, plain = runs_of(context), runs_of(context, way=PlainRuns)
    assert isinstance(fast, FastRuns)
    last = context.adapter.num_layers - 1
    several = [(0,), (fast.width - 1,), tuple(range(fast.width))]
    for writes in (
        [Write(Site(1, "block"))],
        [Write(Site(last, "block"))],
        [Write(Site(0, "mlp")), Write(Site(1, "mlp"))],
        [Write(Site(layer, "attn_out")) for layer in range(last + 1)],
        [Write(Site(0, "block")), Write(Site(last, "mlp"), "corrupted")],
    ):
        got, wanted = fast.logprobs(writes, several), plain.logprobs(writes, several)
        assert float((got - wanted).abs().max()) < 1e-5
        assert float((got - fast.baseline).abs().max()) > 1e-6


# ------------------------------------------------------------------ checks 1 to 6
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_cells_that_are_not_run_have_their_scores(family: str) -> None:
    context = context_of(family, torch.float32)
    runs = runs_of(context)
    first, end, last = traced_prompt(context.tokens, FRANCE, "first").corrupted[0], runs.width - 1, 3
    assert first > 0
    before = [(t,) for t in range(first)]
    for part in ("block", "mlp", "attn_out"):
        for layer in range(4):
            found = runs.logprobs([Write(Site(layer, part))], before)  # type: ignore[arg-type]
            assert float((found.exp() - runs.baseline.exp()).abs().max()) < 1e-6
    useless = runs.logprobs([Write(Site(last, "block"))], [(t,) for t in range(end)])
    assert float((useless.exp() - runs.baseline.exp()).abs().max()) < 1e-6
    whole = runs.logprobs([Write(Site(last, "block"))], [(end,)])
    assert float(whole.mean()) == pytest.approx(float(runs.clean.logprobs.max()), abs=1e-5)
    table = trace(context, FRANCE, TraceSettings(noise="1.0"))
    for scores in table.scores.values():
        assert set(scores[:first].flatten()) == {table.low}
    assert set(table.scores["block"][:end, last]) == {table.low}
    assert table.scores["block"][end, last] == pytest.approx(table.high, abs=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "t5"])
def test_restoring_everything_gives_the_clean_probability(family: str) -> None:
    context = context_of(family)
    runs = runs_of(context)
    high, everywhere = float(runs.clean.logprobs.max()), [tuple(range(runs.width))]
    assert float(runs.baseline.mean()) < high - 1e-3
    for layer in range(context.adapter.num_layers):
        found = runs.logprobs([Write(Site(layer, "block"))], everywhere)
        assert float((found - high).abs().max()) < 1e-5


def test_restoring_the_embeddings_gives_the_clean_probability() -> None:
    from attrs import evolve

    context = context_of("gpt2")
    runs = runs_of(context)
    noise = runs.corruption(1)
    clean = context.forward.run(runs.batch(1), capture=(noise.site,)).activations[noise.site]
    back = evolve(noise, values=clean[noise.rows, noise.positions], how="set")
    ends = cells(range(10), [runs.width - 1] * 10)
    for inject, wanted in (([noise], runs.baseline), ([noise, back], runs.clean.logprobs.max().expand(10))):
        logits = context.forward.run(runs.batch(1), inject=inject, logits_at=ends).logits
        assert logits is not None
        found = logits.log_softmax(-1)[:, runs.answer]
        assert float((found - wanted).abs().max()) < 1e-9


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "gemma2"])
def test_restoring_all_module_outputs_gives_the_clean_probability_unless_the_end_is_corrupted(family: str) -> None:
    context = context_of(family)
    everything = [
        Write(Site(layer, part)) for layer in range(context.adapter.num_layers) for part in ("mlp", "attn_out")
    ]  # type: ignore[arg-type]
    for fact, whole in ((FRANCE, True), (Fact(prompt="The capital of France", subject="France"), False)):
        runs = runs_of(context, fact)
        found = runs.logprobs(everything, [tuple(range(runs.width))])
        assert (float((found - runs.clean.logprobs.max()).abs().max()) < 1e-5) is whole


def test_no_noise_changes_nothing() -> None:
    found = trace(context := context_of("gpt2"), FRANCE, TraceSettings(noise="0"))
    for scores in found.scores.values():
        np.testing.assert_allclose(scores, found.high, rtol=0, atol=1e-12)
    assert [each.code for each in context.warnings] == ["small_total_effect"]
    assert context.warnings[0].number == pytest.approx(0, abs=1e-12)
    assert "--noise" in context.warnings[0].remedy


def test_equal_seeds_give_equal_tables_and_batches_do_not_matter() -> None:
    settings = TraceSettings(noise="0.5", severed=("mlp",))
    one, again = (trace(context_of("gpt2", torch.float32), FRANCE, settings) for _ in range(2))
    assert one.to_json() == again.to_json()
    alone = trace(context_of("gpt2", torch.float32, memory_budget=1), FRANCE, settings)
    other = trace(context_of("gpt2", torch.float32), FRANCE, TraceSettings(noise="0.5", seed=2))
    for kind, scores in one.scores.items():
        np.testing.assert_allclose(alone.scores[kind], scores, rtol=0, atol=1e-5)
    assert np.abs(other.scores["block"] - one.scores["block"]).max() > 1e-4


def test_a_small_budget_runs_one_cell_at_a_time() -> None:
    context = context_of("gpt2", memory_budget=1)
    runs = runs_of(context)
    rows: list[int] = []
    handle = context.adapter.block(3).register_forward_hook(lambda m, i, o: rows.append(len(i[0])))
    runs.logprobs([Write(Site(1, "block"))], [(t,) for t in range(3)])
    handle.remove()
    assert rows.count(10) >= 3
    assert max(rows) == 10


# ------------------------------------------------------------------ what a run costs and what it leaves
def test_blocks_below_the_restored_one_are_not_run() -> None:
    context = context_of("gpt2")
    runs = runs_of(context)
    runs.logprobs([Write(Site(2, "block"))], [(1,), (2,)])  # calls of this size are recorded now
    called: list[int] = []
    handles = [
        context.adapter.block(i).register_forward_hook(lambda *_, i=i: called.append(i)) for i in range(4)
    ]  # fmt: skip
    heads: list[int] = []
    handles.append(context.adapter.lm_head.register_forward_hook(lambda m, i, o: heads.append(o[..., 0].numel())))
    runs.logprobs([Write(Site(1, "block"))], [(1,), (2,)])
    runs.logprobs([Write(Site(2, "mlp")), Write(Site(3, "mlp"))], [(1,), (2,)])
    for handle in handles:
        handle.remove()
    assert called == [2, 3, 2, 3]
    assert heads == [20, 20]  # two cells of ten samples, at one position


def test_the_model_is_left_as_found_also_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of("gpt2", torch.float32)
    context.model.train()
    context.adapter.mlp(1).eval()
    before = Snapshot(context.model)
    trace(context, FRANCE, TraceSettings(noise="0.5", severed=("attn",)))
    assert before.differences(context.model) == []
    runs = runs_of(context)

    def fail(*_: Any, **__: Any) -> Tensor:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(context.adapter.mlp(3), "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        runs.logprobs([Write(Site(1, "mlp")), Write(Site(2, "attn_out"))], [(1,)])
    monkeypatch.undo()
    assert before.differences(context.model) == []


def test_whole_passes_are_used_where_blocks_cannot_be_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of("gpt2")
    settings = TraceSettings(noise="0.5", severed=("mlp",))
    wanted = trace(context, FRANCE, settings)

    def broken(*_: Any, **__: Any) -> Tensor:
        raise TypeError("no such argument")

    def other(self: ForwardTools, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden * 2

    for way in (broken, other):
        with monkeypatch.context() as patched:
            patched.setattr(ForwardTools, "blocks", way)
            assert isinstance(runs_of(context), PlainRuns)
            found = trace(context, FRANCE, settings)
        for kind, scores in wanted.scores.items():
            np.testing.assert_allclose(found.scores[kind], scores, rtol=0, atol=1e-10)


def test_whole_passes_are_used_when_asked() -> None:
    context = context_of("gpt2")
    tools = ForwardTools(context.forward.model, context.adapter, context.tokens, fast=False)
    assert isinstance(runs_of(context, forward=tools), PlainRuns)


def test_half_precision() -> None:
    found = trace(context_of("llama", torch.bfloat16), FRANCE)
    full = trace(context_of("llama", torch.float32), FRANCE)
    assert found.model["dtype"] == "bfloat16"
    assert found.high == pytest.approx(full.high, abs=0.1)
    assert np.isfinite(found.scores["block"]).all()


@pytest.mark.parametrize("fast", [True, False])
def test_noise_beyond_the_models_numbers_is_refused(fast: bool) -> None:
    """In half precision the squares of large states overflow, and what follows is not a number."""
    context = context_of("gpt2", torch.float16)
    context.forward = ForwardTools(context.model, context.adapter, context.tokens, fast=fast)
    before = Snapshot(context.model)
    with pytest.raises(MethodError, match="'The capital of France is' give probabilities that are not finite; lower"):
        trace(context, FRANCE, TraceSettings(noise="1e6"))
    with pytest.raises(MethodError, match="lower --noise, or run in float32"):
        trace_all(context, [FRANCE, MIRA], TraceSettings(noise="1e6"))
    assert before.differences(context.model) == []
    assert np.isfinite(trace(context, FRANCE, TraceSettings(noise="0.5")).low)


@pytest.mark.parametrize("kind", ["block", "mlp", "attn"])
def test_a_table_that_is_not_finite_is_refused(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the clean and the corrupted run are."""
    context = context_of("gpt2")
    original = Runs.logprobs

    def broken(self: Runs, *args: Any) -> Tensor:
        found = original(self, *args)
        found[-1, -1] = float("nan")
        return found

    monkeypatch.setattr(Runs, "logprobs", broken)
    with pytest.raises(MethodError, match="lower --noise"):
        trace(context, FRANCE, TraceSettings(noise="0.5", kinds=(kind,)))


def test_a_broken_model_is_not_traced() -> None:
    context = context_of("gpt2", torch.float32)
    with torch.no_grad():
        context.adapter.down_weight(1)[0, 0] = float("inf")
    with pytest.raises(MethodError, match=r"the model's own probabilities .* take off an edit that has broken"):
        trace(context, FRANCE, TraceSettings(noise="0.5"))


def test_an_encoder_is_traced_with_a_warning() -> None:
    context = context_of("t5", torch.float32)
    found = trace(context, FRANCE, TraceSettings(noise="1.0"))
    assert [each.code for each in context.warnings if each.code == "encoder_traced"]
    assert found.scores["block"].shape == (len(found.tokens), 4)
    # every encoder state reaches the decoder, so none is known without a run
    assert np.abs(found.effect("block")[:, -1]).max() > 1e-3
    assert np.isfinite(found.log_scores["attn"]).all()


# ------------------------------------------------------------------ answers, occurrences, lists of facts
def test_a_fact_the_model_does_not_know_is_refused() -> None:
    context = context_of("gpt2")
    said = trace(context, FRANCE).answer
    assert trace(context, Fact(prompt=FRANCE.prompt, subject="France", answer=f" {said} ")).answer == said
    with pytest.raises(UnknownFactError, match="not with 'zzz'") as caught:
        trace(context, Fact(prompt=FRANCE.prompt, subject="France", answer="zzz"))
    assert (caught.value.expected, caught.value.found) == ("zzz", said)


def test_of_a_long_answer_all_tokens_must_be_known() -> None:
    editor = Editor.from_pretrained("factworld:llama")
    context = editor.context()
    prompt = "The capital of New Zealand is"
    assert editor.answer([prompt]) == ["Wellington"]
    target = context.tokens.pair(prompt, "Wellington").target_ids
    known = trace(
        context, Fact(prompt=prompt, subject="New Zealand", answer="Wellington"), TraceSettings(kinds=("mlp",))
    )
    assert (known.answer_tokens, known.answer_id) == (len(target), target[0])
    with pytest.raises(UnknownFactError):
        trace(context, Fact(prompt=prompt, subject="New Zealand", answer="Wellingtonia"))


def test_a_repeated_subject_is_told_and_can_be_corrupted_everywhere() -> None:
    context = context_of("gpt2")
    fact = Fact(prompt="France, yes France is in", subject="France")
    settings = TraceSettings(kinds=("block",), noise="0.5")
    first = trace(context, fact, settings)
    [warning] = [each for each in context.warnings if each.code == "subject_repeated"]
    assert warning.number == 2
    context.warnings.clear()
    everywhere = trace(context, fact, TraceSettings(kinds=("block",), noise="0.5", occurrence="all"))
    last = trace(context, fact, TraceSettings(kinds=("block",), noise="0.5", occurrence="last"))
    assert first.subjects + last.subjects == everywhere.subjects
    assert not [each for each in context.warnings if each.code == "subject_repeated" and each is not warning][1:]
    assert len({round(each.low, 9) for each in (first, last, everywhere)}) == 3


def test_lists_share_one_noise_and_skip_what_is_not_known() -> None:
    context = context_of("gpt2", torch.float32)
    unknown = Fact(prompt=FRANCE.prompt, subject="France", answer="zzz")
    found = trace_all(context, [FRANCE, unknown, MIRA])
    assert [each.prompt for each in found.traces] == [FRANCE.prompt, MIRA.prompt]
    assert [each.fact for each in found.skipped] == [unknown]
    assert found.noise.scale == resolve_noise(context, TraceSettings(), ["France", "France", "Mira Taldon"]).scale
    assert all(each.noise == found.noise.to_dict() for each in found.traces)
    alone = trace(context, MIRA, noise=found.noise)
    assert alone.to_json() == found.traces[1].to_json()


def test_bad_input_is_refused_before_any_pass() -> None:
    context = context_of("gpt2")
    calls: list[int] = []
    handle = context.model.register_forward_pre_hook(lambda *_: calls.append(1))
    nowhere = Fact(prompt="The capital of France is", subject="Fran")
    with pytest.raises(InputError, match="does not stand in"):
        trace(context, nowhere, TraceSettings(noise="1"))
    with pytest.raises(InputError, match="does not stand in"):
        trace_all(context, [FRANCE, nowhere])
    with pytest.raises(InputError, match="no fact to trace"):
        trace_all(context, [])
    with pytest.raises(InputError, match="128 positions"):
        trace(context, Fact(prompt=f"France {'is big ' * 100}", subject="France"))
    handle.remove()
    assert calls == []


@pytest.mark.slow
def test_a_model_that_knows_facts_has_an_early_and_a_late_site() -> None:
    """Check 8 on a small scale; docs/locating.md has it over all cases of FactWorld."""
    countries = ["France", "Indonesia", "Serbia", "Eritrea", "Japan", "Kenya"]
    context = Editor.from_pretrained("factworld:llama").context()
    facts = [Fact(prompt=f"The capital of {country} is", subject=country) for country in countries]
    traces: list[Trace] = list(trace_all(context, facts).traces)
    found = average(traces)
    assert found.total_effect > 0.5
    block, mlp, attn = (found.at(kind, "last_subject") for kind in ("block", "mlp", "attn"))
    assert block.argmax() < 3
    assert block[:3].min() > 0.5 * found.total_effect > block[-1]
    assert found.at("block", "last").argmax() == 5
    assert mlp.argmax() <= 1
    assert mlp.max() > 0.5 * found.total_effect
    assert found.at("attn", "last").max() > attn.max()
    assert suggest_layers(found).layer == mlp.argmax()
