"""lora and adalora against slow references: whole weights written out, transformers' own loss, peft's own model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from kedit_core import Editor, EditRequest
from kedit_core.editing.context import seeded
from kedit_core.testing.tiny import tiny
from kedit_methods_finetune.hparams import AdaLoraHyperParams, LoraHyperParams
from kedit_methods_finetune.hparams.lora import AdapterHyperParams
from kedit_methods_finetune.lora.adapters import Adapters, SvdAdapters
from kedit_methods_finetune.lora.targets import find_targets
from kedit_methods_finetune.lora.training import steps_of

pytestmark = pytest.mark.slow

FACTS = [
    EditRequest(prompt="The capital of France is", target_new="Rome", case_id="a"),
    EditRequest(prompt="Alice works in the city of", target_new="Paris and London too", case_id="b"),
    EditRequest(prompt="The mother tongue of Bob is", target_new="French", case_id="c"),
]


def editor_on(family: str, method: str = "lora", dtype: torch.dtype = torch.float64, **hparams: Any) -> Editor:
    model, tokenizer = tiny(family, dtype=dtype)
    return Editor(model, tokenizer, method, {"num_steps": 3, "dropout": 0.0, **hparams}, seed=5)


def made_adapters(editor: Editor, requests: Sequence[EditRequest]) -> Adapters:
    """The adapters as an edit with these requests starts with them, on a copy of the model."""
    hparams = editor.context().hparams
    assert isinstance(hparams, AdapterHyperParams)
    twin = Editor(deepcopy(editor.model), editor.tokenizer, editor.info.name if editor.info else None, hparams)
    cls = SvdAdapters if isinstance(hparams, AdaLoraHyperParams) else Adapters
    steps = steps_of(len(requests), hparams)
    return cls(peft, find_targets(twin.adapter, hparams), hparams, seeded(5), steps)


def labelled(editor: Editor, requests: Sequence[EditRequest]) -> dict[str, Tensor]:
    """A right-padded batch with labels, as transformers' loss wants them: -100 wherever nothing is asked for."""
    pairs = [editor.tokens.pair(r.prompt, r.target_new) for r in requests]
    apart = editor.adapter.is_encoder_decoder
    rows = [p.prompt_ids if apart else p.prompt_ids + p.target_ids for p in pairs]
    asked = [p.target_ids if apart else (-100,) * len(p.prompt_ids) + p.target_ids for p in pairs]

    def padded(lists: Sequence[Sequence[int]], filler: int) -> Tensor:
        width = max(map(len, lists))
        return torch.tensor([[*each, *[filler] * (width - len(each))] for each in lists])

    return {
        "input_ids": padded(rows, 0),
        "attention_mask": padded([[1] * len(each) for each in rows], 0),
        "labels": padded(asked, -100),
    }


def wide_loss(logits: Tensor, labels: Tensor, vocab_size: int, **_: Any) -> Tensor:
    """transformers' causal loss without its rounding to float32."""
    return cross_entropy(logits[:, :-1].reshape(-1, vocab_size), labels[:, 1:].flatten(), ignore_index=-100)


def with_wide_loss(model: Any) -> Any:
    """A copy of a model whose loss is as wide as the model."""
    twin = deepcopy(model)
    twin.loss_function = wide_loss
    return twin


def plain_lora(editor: Editor, requests: Sequence[EditRequest], hparams: LoraHyperParams) -> dict[str, Tensor]:
    """Deltas ``[out, in]`` by place: LoRA by the letter, every weight written out whole at every step."""
    start, model = made_adapters(editor, requests), with_wide_loss(editor.model)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    right = {p: start.factors(layer)[1].detach().clone().requires_grad_() for p, layer in start.layers.items()}
    left = {t.place: torch.zeros(t.out, hparams.rank, dtype=torch.float64, requires_grad=True) for t in start.targets}
    scale = hparams.alpha / hparams.rank

    def delta(place: str) -> Tensor:
        return scale * left[place] @ right[place]

    adam = torch.optim.Adam([*right.values(), *left.values()], lr=hparams.lr)
    for _ in range(hparams.num_steps):
        for i in range(0, len(requests), hparams.batch_size):
            weights = dict(parameters)
            for place in right:
                turned = editor.adapter.layout(place) == "in_out"
                weights[place] = parameters[place] + (delta(place).T if turned else delta(place))
            chunk = requests[i : i + hparams.batch_size]
            # transformers' loss of a batch is the mean over its tokens
            batches = [chunk] if hparams.loss == "token" else [[request] for request in chunk]
            losses = [functional_call(model, weights, kwargs=labelled(editor, batch)).loss for batch in batches]
            loss = torch.stack(losses).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    return {place: delta(place).detach() for place in right}


def deltas_of(patch: Any) -> dict[str, Tensor]:
    return {op.place: op.left @ op.right for op in patch.operations}


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "t5"])
@pytest.mark.parametrize(
    ("count", "settings"), [(1, {}), (3, {"batch_size": 2}), (3, {"batch_size": 2, "loss": "token"})], ids=str
)
def test_lora_is_the_plain_lora(family: str, count: int, settings: dict[str, Any]) -> None:
    """Also the loss: as it is by default the mean over requests, and with ``token`` transformers' own."""
    editor = editor_on(family, rank=3, alpha=6.0, targets=["q", "v", "mlp_out"], **settings)
    hparams = editor.context().hparams
    assert isinstance(hparams, LoraHyperParams)
    expected = plain_lora(editor, FACTS[:count], hparams)
    found = deltas_of(editor.compute(FACTS[:count]))
    assert found.keys() == expected.keys()
    for place, delta in found.items():
        assert delta.abs().max() > 1e-3
        torch.testing.assert_close(delta, expected[place], rtol=0, atol=1e-8)


def test_lora_by_request_weighs_requests_and_not_tokens() -> None:
    """With loss=request a long target counts no more than a short one."""
    by_token = editor_on("gpt2", batch_size=3, num_steps=1, loss="token").compute(FACTS)
    by_request = editor_on("gpt2", batch_size=3, num_steps=1, loss="request").compute(FACTS)
    one_by_one = [editor_on("gpt2", num_steps=1).compute([fact]).state.config["epochs"][0] for fact in FACTS]
    lengths = [len(editor_on("gpt2").tokens.pair(f.prompt, f.target_new).target_ids) for f in FACTS]
    assert len(set(lengths)) > 1
    assert by_request.state.config["epochs"][0] == pytest.approx(sum(one_by_one) / 3, abs=1e-9)
    weighted = sum(n * loss for n, loss in zip(lengths, one_by_one, strict=True)) / sum(lengths)
    assert by_token.state.config["epochs"][0] == pytest.approx(weighted, abs=1e-9)


def peft_model(editor: Editor, requests: Sequence[EditRequest], steps: int, names: str) -> Any:
    """peft's own AdaLoRA of a copy of the model, with the adapters that an edit starts with."""
    config = peft.AdaLoraConfig(
        init_r=12, target_r=8, lora_alpha=32, lora_dropout=0.0, total_step=steps, target_modules=names,
        task_type="CAUSAL_LM", fan_in_fan_out="c_attn" in names, orth_reg_weight=0.5,
    )  # fmt: skip
    model = peft.get_peft_model(with_wide_loss(editor.model), config)
    start = made_adapters(editor, requests)
    with torch.no_grad():
        for place, layer in start.layers.items():
            theirs = model.base_model.model.get_submodule(place.removesuffix(".weight"))
            for part in ("lora_A", "lora_B", "lora_E"):
                getattr(theirs, part)["default"].copy_(getattr(layer, part)["kedit"])
    return model.eval()


@pytest.mark.parametrize("parity", [False, True])
@pytest.mark.parametrize(("family", "names"), [("gpt2", r".*\.c_attn"), ("gpt_neox", r".*\.query_key_value")])
def test_adalora_is_the_one_of_peft(family: str, names: str, parity: bool) -> None:
    """The same loss (with the orthogonality part), the same allocation after each step, the same deltas.

    Two facts in chunks of one, so that steps are not epochs.
    """
    epochs, requests = 6, FACTS[:2]
    editor = editor_on(family, "adalora", num_steps=epochs, parity=parity)
    reference = peft_model(editor, requests, epochs * 2, names)
    batches = [labelled(editor, [request]) for request in requests]
    for batch in batches:
        wide = wide_loss(editor.model(**batch).logits, batch["labels"], editor.adapter.vocab_size)
        assert editor.model(**batch).loss.item() == pytest.approx(wide.item(), abs=1e-5)
    trained = [p for name, p in reference.named_parameters() if p.requires_grad and "ranknum" not in name]
    adam = torch.optim.Adam(trained, lr=5e-3)
    for step in range(epochs * 2):
        adam.zero_grad()
        reference(**batches[step % 2]).loss.backward()
        adam.step()
        if not parity:
            reference.base_model.update_and_allocate(step)
    patch = editor.compute(requests)
    found = deltas_of(patch)
    assert found
    for place, delta in found.items():
        layer = reference.base_model.model.get_submodule(place.removesuffix(".weight"))
        expected = layer.get_delta_weight("default").detach()
        if editor.adapter.layout(place) == "in_out":
            expected = expected.T
        torch.testing.assert_close(delta, expected, rtol=0, atol=1e-8)
    ranks = [operation.left.shape[1] for operation in patch.operations]
    layers = editor.adapter.num_layers
    assert ranks == [12] * layers if parity else sum(ranks) == 8 * layers


def test_the_loss_with_parity_is_cross_entropy_and_half_the_regulariser() -> None:
    """As peft's model returns it, and as the sheet writes it; the divisor is the rank at first, throughout."""
    editor = editor_on("gpt2", "adalora", parity=True)
    start = made_adapters(editor, FACTS[:1])
    penalty = start.penalty()
    assert penalty is not None
    norms = []
    for layer in start.layers.values():
        a, b = layer.lora_A["kedit"], layer.lora_B["kedit"]
        norms += [(a @ a.T - torch.eye(12)).norm(), (b.T @ b - torch.eye(12)).norm()]
    assert penalty.item() == pytest.approx(0.5 * torch.stack(norms).mean().item(), abs=1e-12)
    theirs = peft_model(editor, FACTS[:1], 3, r".*\.c_attn")(**labelled(editor, FACTS[:1])).loss.item()
    plain = editor.compute(FACTS[:1]).state.config["epochs"][0]
    assert plain + penalty.item() == pytest.approx(theirs, abs=1e-9)
    layer = next(iter(start.layers.values()))
    start.after_step(0)
    start.after_step(1)
    assert float(layer.ranknum["kedit"]) == 12
    left, _ = _with_ones(start)
    assert left == pytest.approx(32 / (12 + 1e-5), rel=1e-9)


def _with_ones(adapters: Adapters) -> tuple[float, float]:
    """The factors of an adapter whose every entry is one."""
    layer = next(iter(adapters.layers.values()))
    with torch.no_grad():
        for part in (layer.lora_A, layer.lora_B, layer.lora_E):
            part["kedit"].fill_(1)
    left, right = adapters.factors(layer)
    return float(left.detach().flatten()[0]), float(right.detach().flatten()[0])
