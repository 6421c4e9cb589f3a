"""Which token is read and written: acceptance check 10 and the pitfalls of section 2, over every kind of tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from locate_tools import MIRA, TEMPLATES, delta_of, editor_on, spanned

from kedit_core import EditRequest
from kedit_core.errors import MethodError, RequestError
from kedit_core.forward import ForwardTools, Site, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import KINDS, tiny, tiny_tokenizer
from kedit_methods_locate.keys import average, read
from kedit_methods_locate.rows import rewrite, text_row
from kedit_methods_locate.templates import BARE

PLACES = {
    "start": ("France is a country whose capital is", "France"),
    "middle": ("The capital of France is", "France"),
    "end": ("I live in France", "France"),
    "twice": ("France is old, and the capital of France is", "France"),
    "one character": ("The letter q stands before", "q"),
    "punctuation": ("The company Norrvale Inc. was founded by", "Norrvale Inc."),
    "possessive": ("The Glass Orchard's author is", "The Glass Orchard"),
    "two words": ("Mira Taldon was born in the city of", "Mira Taldon"),
    "not Latin": ("The river 東京川 flows through", "東京川"),
}


def boundary(kind: str) -> TokenBoundary:
    return TokenBoundary(tiny_tokenizer(kind), encoder_decoder=kind == "t5")


def last_character_token(tokens: TokenBoundary, text: str, end: int) -> int:
    """The last token that overlaps character ``end - 1``, counted by hand."""
    offsets = tokens.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    return max(i for i, (a, b) in enumerate(offsets) if a < end <= b)


def test_a_merge_over_the_subjects_end_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Pitfall 4: the truncated text has another last token than the whole one."""
    tokens = boundary("byte_bpe")
    whole = next(
        text
        for text in ("France's", "Parison", "thes", "Romes capital", "cities", "Francest", "Paristhe")
        for cut in range(1, len(text))
        if tokens.subject_tokens(text, (0, cut))[-1] != len(tokens.prompt(text[:cut]).ids) - 1
    )
    cut = next(
        cut
        for cut in range(1, len(whole))
        if tokens.subject_tokens(whole, (0, cut))[-1] != len(tokens.prompt(whole[:cut]).ids) - 1
    )
    with caplog.at_level("WARNING", logger="kedit_methods_locate.rows"):
        rewrite(tokens, EditRequest(prompt=whole, subject_span=(0, cut), target_new="Brink"), (BARE,))
        assert "rule of the papers' code" in caplog.text
        caplog.clear()
        rewrite(tokens, spanned(MIRA), (BARE,))
        assert not caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_the_subjects_last_token(kind: str, place: str) -> None:
    """BOS in front, EOS behind, spaces in the token or not: offsets of the whole text decide (pitfalls 1 to 4)."""
    prompt, subject = PLACES[place]
    request = spanned(EditRequest(prompt=prompt, subject=subject, target_new="Brink"))
    assert request.subject_span is not None
    tokens = boundary(kind)
    for template, row in zip(TEMPLATES, rewrite(tokens, request, TEMPLATES).rows, strict=True):
        shift = template.index(BARE)
        text = template.replace(BARE, prompt)
        assert row.ids == tokens.prompt(text).ids
        assert row.index == last_character_token(tokens, text, request.subject_span[1] + shift)


def test_each_row_has_its_own_index() -> None:
    """Pitfall 3: without a space before it the subject is other tokens, here more of them."""
    tokens = boundary("byte_bpe")
    request = spanned(EditRequest(prompt="Mira Taldon works as", subject="Mira Taldon", target_new="violinist"))
    bare, behind = rewrite(tokens, request, ("{}", "I know {}")).rows
    before = tokens.prompt("I know").ids
    assert behind.ids[: len(before)] == before
    assert bare.ids != behind.ids[len(before) :]
    assert behind.index != bare.index + len(before)


def test_subject_twice_is_written_at_the_last_or_where_told() -> None:
    """Pitfall 5."""
    prompt = "France is old, and the capital of France is"
    tokens = boundary("byte_bpe")
    request = EditRequest(prompt=prompt, subject="France", target_new="Brink")
    (last,) = rewrite(tokens, spanned(request), [BARE]).rows
    (first,) = rewrite(tokens, evolve(request, subject_span=(0, 6)), [BARE]).rows
    assert first.index < last.index
    assert last.index == last_character_token(tokens, prompt, prompt.rindex("France") + 6)


@pytest.mark.parametrize("kind", KINDS)
def test_fact_token_options(kind: str) -> None:
    tokens = boundary(kind)
    text, span = "Mira Taldon was born in", (0, 11)
    subject = tokens.prompt(text).tokens_of(span)
    found = {name: text_row(tokens, text, span, name).index
             for name in ("subject_last", "subject_first", "subject_first_after_last", "last")}  # type: ignore[arg-type]  # fmt: skip
    assert found["subject_last"] == subject[-1]
    assert found["subject_first"] == subject[0]
    assert found["subject_first_after_last"] == subject[-1] + 1
    assert found["last"] == last_character_token(tokens, text, len(text))
    alone = text_row(tokens, "Mira Taldon", span, "subject_first_after_last")
    assert alone.index == alone.last, "nothing follows, so the last subject token is taken"


def test_target_ids_follow_the_prompt_in_every_row() -> None:
    for kind in KINDS:
        tokens = boundary(kind)
        for target in ("Port Lumen", " Port Lumen"):
            rows = rewrite(tokens, spanned(evolve(MIRA, target_new=target)), TEMPLATES)
            assert rows.target == tokens.pair(MIRA.prompt, "Port Lumen").target_ids


def test_no_subject_is_said(tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="no subject"):
        rewrite(boundary("byte_bpe"), EditRequest(prompt="a b", target_new="c"), [BARE])
    with pytest.raises(RequestError, match="needs one"):
        editor_on("gpt2", tmp_path).compute(EditRequest(prompt="a b", target_new="c"))


# ------------------------------------------------------------------ padding
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_the_tokenizers_padding_side_does_not_matter(family: str, tmp_path: Path) -> None:
    patches = []
    for side in ("left", "right"):
        editor = editor_on(family, tmp_path, v_lr=0.1, v_num_grad_steps=4)
        editor.tokenizer.padding_side = side
        patches.append(editor.compute(MIRA))
    assert patches[0].to_bytes() == patches[1].to_bytes()


@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox", "opt"])
def test_left_and_right_padding_give_the_same_keys_and_delta(family: str, tmp_path: Path) -> None:
    """The fast path pads on the left and the plain one on the right: one delta (see also test_value_search)."""
    deltas = [delta_of(editor_on(family, tmp_path, v_lr=0.1, v_num_grad_steps=4, fast=fast).compute(MIRA))
              for fast in (True, False)]  # fmt: skip
    torch.testing.assert_close(deltas[0], deltas[1], rtol=1e-8, atol=1e-11)
    editor = editor_on(family, tmp_path)
    rows = rewrite(editor.tokens, spanned(MIRA), TEMPLATES).rows
    site = Site(1, "mlp_out", "input")
    keys = [read(editor.forward, rows, (site,), side=side)[site] for side in ("left", "right")]  # type: ignore[arg-type]
    torch.testing.assert_close(keys[0], keys[1], rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ reading keys
def tools_of(family: str, **settings: Any) -> ForwardTools:
    model, tokenizer = tiny(family, dtype=torch.float64)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    return ForwardTools(model, view, TokenBoundary(tokenizer, view.is_encoder_decoder), **settings)


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5", "t5_gated"])
def test_keys_are_the_down_projections_inputs(family: str) -> None:
    """Statistics check 6: W k + b is the module's output; all sites in one pass, whatever the buckets."""
    tools = tools_of(family)
    rows = rewrite(tools.boundary, spanned(MIRA), TEMPLATES).rows
    sites = [Site(layer, "mlp_out", side) for layer in (0, 2) for side in ("input", "output")]  # type: ignore[arg-type]
    found = read(tools, rows, sites)
    for layer in (0, 2):
        bias = getattr(tools.view.mlp_out(layer), "bias", None)
        keys, outputs = found[Site(layer, "mlp_out", "input")], found[Site(layer, "mlp_out", "output")]
        wanted = keys @ tools.view.down_weight(layer).T + (0 if bias is None else bias)
        torch.testing.assert_close(outputs, wanted.detach(), rtol=1e-4, atol=1e-8)
    one_by_one = read(tools, rows, sites, max_tokens=1)
    for site in sites:
        torch.testing.assert_close(found[site], one_by_one[site])


def test_keys_of_gated_mlps() -> None:
    """Statistics check 7: the key of a GLU is act(gate) * up."""
    tools = tools_of("llama")
    (row, *_) = rewrite(tools.boundary, spanned(MIRA), TEMPLATES).rows
    seen: dict[str, torch.Tensor] = {}
    mlp: Any = tools.view.mlp(1)
    hook = mlp.register_forward_pre_hook(lambda m, args: seen.setdefault("x", args[0][0, row.index]))
    tools.model(torch.tensor([row.ids]))
    hook.remove()
    wanted = mlp.act_fn(mlp.gate_proj(seen["x"])) * mlp.up_proj(seen["x"])
    site = Site(1, "mlp_out", "input")
    torch.testing.assert_close(read(tools, [row], (site,))[site][0], wanted.detach())


@given(st.lists(st.floats(0.1, 5), min_size=2, max_size=6))
def test_averaging(weights: list[float]) -> None:
    values = torch.arange(len(weights) * 3, dtype=torch.float32).reshape(len(weights), 3)
    torch.testing.assert_close(average(values), values.mean(0))
    share = torch.tensor(weights) / sum(weights)
    torch.testing.assert_close(average(values, weights), (values * share[:, None]).sum(0))
    assert average(values.to(torch.bfloat16)).dtype == torch.float32
