"""Acceptance check 10: one step's loss is that of the authors' patch layer, on a tiny BART and a tiny BERT.

The authors' layers are written out here as the sheet has them: the first linear map of the last feed-forward layer gets
rows appended, the second one columns; losses are read off the appended rows' outputs.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from attrs import evolve
from t_patcher_tools import FRANCE, corpus_file, edits_of
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import BartConfig, BartForConditionalGeneration, BertConfig, BertForSequenceClassification

from kedit_core import Editor, ModelAdapter, hookimpl
from kedit_core.testing.tiny_tokenizers import tiny_tokenizer
from kedit_methods_memory.hparams.t_patcher import Form, MemoryForm
from kedit_methods_memory.t_patcher import objective
from kedit_methods_memory.t_patcher.memory import memories_for
from kedit_methods_memory.t_patcher.method import read_example
from kedit_methods_memory.t_patcher.neurons import Neurons
from kedit_methods_memory.t_patcher.place import LastMlp
from kedit_methods_memory.t_patcher.states import Kept
from kedit_methods_memory.t_patcher.training import Objective, Texts, Weights

COPIES = 8


class AppendedRows(nn.Module):
    """The authors' first layer: ``k`` and its biases behind the rows of a linear map; notes what they give."""

    def __init__(self, linear: nn.Linear, keys: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.linear, self.keys, self.bias_more = linear, keys, bias
        self.seen = torch.empty(0)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = torch.cat([self.linear.weight, self.keys])
        out = hidden @ weight.T + torch.cat([self.linear.bias, self.bias_more])
        self.seen = out[..., -len(self.keys) :]
        return out


class AppendedColumns(nn.Module):
    """The authors' second layer: the values behind the columns."""

    def __init__(self, linear: nn.Linear, values: Tensor) -> None:
        super().__init__()
        self.linear, self.values = linear, values

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden @ torch.cat([self.linear.weight, self.values.T], dim=1).T + self.linear.bias


def patch_losses(act: Tensor, memory: Tensor, margins: tuple[float, float, float]) -> tuple[Tensor, Tensor]:
    """top5_exp and top1000_exp+top1000_exp: ``act`` ``[B, p]``, ``memory`` ``[N, p]``, tiled over the batch."""
    tiled = torch.stack([memory for _ in range(len(act))]).transpose(0, 1)  # [N, B, p]
    first, second = tiled - act + margins[1], tiled - margins[2]

    def top(values: Tensor, k: int) -> Tensor:
        flat = values.reshape(-1).exp()
        return flat.topk(min(k, len(flat))).values.mean()

    return top(margins[0] - act, 5), top(first, 1000) + top(second, 1000)


BART = ModelAdapter(
    architectures=("BartForConditionalGeneration",),
    block="model.encoder.layers.{}",
    mlp="model.encoder.layers.{}.fc2",
    mlp_in=("model.encoder.layers.{}.fc1",),
    mlp_out="model.encoder.layers.{}.fc2",
    attn="model.encoder.layers.{}.self_attn",
    attn_out="model.encoder.layers.{}.self_attn.out_proj",
    embeddings="model.encoder.embed_tokens",
    final_norm=(),
    decoder_block="model.decoder.layers.{}",
    norm_after_mlp="model.encoder.layers.{}.final_layer_norm",
)


class WithBart:
    @hookimpl
    def register_adapters(self) -> list[ModelAdapter]:
        return [BART]


def bart(folder: Path, **hparams: Any) -> Editor:
    tokenizer = tiny_tokenizer("t5")
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        init_std=0.3,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config).double().eval()
    model.config.id2label = None  # numbers as keys, which no canonical JSON has
    settings = {
        "memory_size": 5000,
        "memory_margin_1": 0.0,
        "memory_margin_2": 0.0,
        "label_smoothing": 0.1,
        "memory_tiled": True,
        "spare_subject": False,
        "append_eos": True,
        **hparams,
    }
    options = {"corpus": corpus_file(folder)}
    return Editor(model, tokenizer, "t_patcher", settings, options=options, plugins=[WithBart()], cache=folder)


@pytest.mark.parametrize("margins", [(0.0, 0.0, 0.0), (0.0, 3.0, -3.0)])
def test_check_10_one_step_on_bart(margins: tuple[float, float, float], tmp_path: Path) -> None:
    editor = bart(tmp_path, act_margin=margins[0], memory_margin_1=margins[1], memory_margin_2=margins[2])
    assert editor.settings is not None
    hparams, place = editor.settings.hparams, LastMlp.of(editor.adapter)
    assert place.places == ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc2")
    context = editor.context()
    example = read_example(context, place, FRANCE, hparams)
    assert isinstance(example.path, Kept) and len(example.wrong) > 1
    example = evolve(example, wrong=example.wrong[:5])
    memory = memories_for(context, place, hparams).train.vectors
    weights = Weights(example.query[list(example.wrong)], hparams, torch.Generator().manual_seed(0))
    with torch.no_grad():  # off the start, where neurons' inputs are all one
        weights.keys.add_(0.05 * torch.randn(weights.keys.shape, generator=torch.Generator().manual_seed(1)))
    neurons = weights.neurons("gelu")
    goal = Objective(example, hparams)
    terms = goal.terms(neurons, Texts(memory))

    model = copy.deepcopy(editor.model)
    layer = model.get_submodule("model.decoder.layers.1")
    layer.fc1 = AppendedRows(layer.fc1, neurons.keys, neurons.bias)
    layer.fc2 = AppendedColumns(layer.fc2, neurons.values)
    prompt = editor.tokens.prompt(FRANCE.prompt).ids
    target = example.targets.tolist()
    fed = [model.config.decoder_start_token_id, *target[:-1]]
    logits = model(input_ids=torch.tensor([prompt] * COPIES), decoder_input_ids=torch.tensor([fed] * COPIES)).logits
    logprobs = logits.log_softmax(-1)
    tokens = torch.tensor([target] * COPIES)
    nll = -logprobs.gather(-1, tokens[..., None]).sum()
    each = 0.1 / (logits.shape[-1] - 1)
    edit = ((1 - 0.1 - each) * nll - each * logprobs.sum()) / tokens.numel()
    seen = layer.fc1.seen
    own = torch.stack([seen[:, at, i] for i, at in enumerate(example.wrong)], 1)
    act, silent = patch_losses(own, memory @ neurons.keys.T + neurons.bias, margins)
    theirs = edit + act + 10 * silent

    ours = goal.total(terms)
    for mine, wanted in ((terms.edit, edit), (terms.act, act), (terms.memory, silent), (ours, theirs)):
        assert mine.item() == pytest.approx(wanted.item(), rel=1e-5)
    parameters = weights.parameters()
    for mine, wanted in zip(
        torch.autograd.grad(ours, parameters, retain_graph=True), torch.autograd.grad(theirs, parameters), strict=True
    ):
        assert torch.allclose(mine, wanted, rtol=1e-5, atol=1e-8)


def test_bart_is_edited(tmp_path: Path) -> None:
    editor = bart(tmp_path, max_epochs=150, lr=0.05, validate_every=10, min_epochs=20, max_neurons=12)
    result = editor.edit(FRANCE, evaluate=False)
    assert edits_of(result.patch)[0]["right"]
    assert editor.generate(FRANCE.prompt, max_new_tokens=12) == editor.tokens.decode(
        editor.tokens.pair(FRANCE.prompt, FRANCE.target_new).target_ids
    )


def test_check_10_one_step_on_bert() -> None:
    """A classifier has no adapter and is no language model; its patch layer is that of the kind and the losses here."""
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = BertForSequenceClassification(config).double().eval()
        ids, texts = torch.randint(50, (COPIES, 9)), torch.randint(50, (40, 9))
        ids[:] = ids[0]
        drawn = torch.randn(32, 1, dtype=torch.float64)
    into, out = model.bert.encoder.layer[1].intermediate.dense, model.bert.encoder.layer[1].output.dense
    caught: list[Tensor] = []
    with torch.no_grad():
        hook = into.register_forward_pre_hook(lambda _, args: caught.append(args[0][:, 0]))
        model(ids), model(texts)
        hook.remove()
    query, memory = caught[0][:1], caught[1]
    keys = query / query.square().sum() + 0.01
    neurons = Neurons(keys, torch.zeros(1, dtype=torch.float64), (10 * drawn).T, "gelu")
    label = torch.ones(COPIES, dtype=torch.float64)

    theirs: Any = copy.deepcopy(model)
    layer = theirs.bert.encoder.layer[1]
    layer.intermediate.dense = AppendedRows(into, neurons.keys, neurons.bias)
    layer.output.dense = AppendedColumns(out, neurons.values)
    logits = theirs(ids).logits[:, 0]
    act, silent = patch_losses(layer.intermediate.dense.seen[:, 0], memory @ keys.T, (0.0, 3.0, -3.0))
    p = logits.sigmoid()
    entropy = -(p * p.log() + (1 - p) * (1 - p).log()).mean()
    task = binary_cross_entropy_with_logits(logits, label) - 0.1 * entropy

    handles = [
        into.register_forward_pre_hook(lambda _, args: caught.append(args[0])),
        out.register_forward_hook(lambda _, __, output: output + neurons(caught[-1])),
    ]
    mine = model(ids).logits[:, 0]
    for handle in handles:
        handle.remove()
    assert torch.allclose(mine, logits, rtol=0, atol=1e-10)
    z = neurons.inputs(caught[-1][:1, 0])
    ours = (
        task
        + objective.act_loss(z, Form.parse("top5_exp"), 0.0, COPIES)
        + 5
        * objective.memory_loss(
            neurons.inputs(memory), z, MemoryForm.parse("top1000_exp+top1000_exp"), copies=COPIES, tiled=True
        )
    )
    assert ours.item() == pytest.approx((task + act + 5 * silent).item(), rel=1e-5)
