"""Suppressing and enhancing knowledge neurons; acceptance check 5, on facts that FactWorld's model knows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from kedit_core import Editor
from kedit_core.errors import InputError
from kedit_core.testing.snapshot import Snapshot
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.kn import attribute, coarse, enhance, neuron_layers, scaled, suppress

PROMPT, ANSWER = "The capital of France is", "Port Lumen"


@pytest.mark.parametrize("family", ["gpt2", "llama", "phi3", "opt", "t5"])
def test_chosen_neurons_are_scaled_where_the_answer_is_predicted(family: str) -> None:
    """Against one token at a time, with a hook that multiplies the down-projection's input."""
    model, tokenizer = tiny(family, dtype=torch.float64)
    editor = Editor(model, tokenizer)
    pair = editor.tokens.pair(PROMPT, ANSWER)
    chosen = [(0, 3), (2, 5), (2, 7)]
    layers = neuron_layers(editor.adapter)
    before = Snapshot(model)
    for factor, found in ((0.0, suppress), (2.0, enhance)):
        wanted = []
        for t, answer in enumerate(pair.target_ids):
            fed = [*pair.prompt_ids, *pair.target_ids[:t]]
            inputs = {"input_ids": torch.tensor([fed])}
            if editor.adapter.is_encoder_decoder:
                decoder = [model.config.decoder_start_token_id, *pair.target_ids[:t]]
                inputs = {"input_ids": torch.tensor([pair.prompt_ids]), "decoder_input_ids": torch.tensor([decoder])}
            handles = []
            for block, index in chosen:

                def scale(
                    _: nn.Module, args: tuple[Tensor, ...], index: int = index, by: float = factor
                ) -> tuple[Tensor]:
                    x = args[0].clone()
                    x.view(-1, x.shape[-1])[-1, index] *= by
                    return (x,)

                handles.append(layers[block].module.register_forward_pre_hook(scale))
            with torch.no_grad():
                wanted.append(model(**inputs).logits[0, -1].softmax(-1)[answer])
            for handle in handles:
                handle.remove()
        torch.testing.assert_close(
            found(editor.forward, PROMPT, ANSWER, chosen), torch.stack(wanted), rtol=1e-6, atol=0
        )
    assert not before.differences(model)


def test_a_gate_is_scaled_before_its_activation() -> None:
    """Of a fused projection the first half; none chosen, or a factor of one, changes nothing."""
    model, tokenizer = tiny("phi3", dtype=torch.float64)
    editor = Editor(model, tokenizer)
    clean = scaled(editor.forward, PROMPT, ANSWER, [], 0.0)
    width = editor.adapter.mlp_size(0)
    every = [(1, index) for index in range(width)]
    torch.testing.assert_close(scaled(editor.forward, PROMPT, ANSWER, every, 1.0, neuron="pre"), clean)
    # a gate of zero is an activation of zero, so all of the block's neurons are off either way
    off = suppress(editor.forward, PROMPT, ANSWER, every, neuron="pre")
    torch.testing.assert_close(off, suppress(editor.forward, PROMPT, ANSWER, every))
    assert not torch.allclose(off, clean)


@pytest.mark.parametrize("neuron", [(0, 80), (3, 0), (-1, 0)])
def test_neurons_that_are_not_there_are_refused(neuron: tuple[int, int]) -> None:
    model, tokenizer = tiny("gpt2")
    with pytest.raises(InputError, match="no neuron"):
        suppress(Editor(model, tokenizer).forward, PROMPT, ANSWER, [neuron])


@pytest.mark.parametrize("model", ["factworld:gpt2", pytest.param("factworld:llama", marks=pytest.mark.slow)])
def test_found_neurons_matter_more_than_random_ones(model: str) -> None:
    """Over 20 facts that the model knows: their neurons lower the answer's probability, as many random ones hardly."""
    editor = Editor.from_pretrained(model)
    requests = editor.host.dataset("factworld").requests()
    generator = torch.Generator().manual_seed(0)
    falls, random_falls, rises = [], [], []
    for request in requests[:: len(requests) // 20][:20]:
        prompt, answer = request.prompt, request.ground_truth or ""
        found = attribute(editor.forward, editor.tokens.pair(prompt, answer), steps=10)
        assert found.predicted
        chosen = coarse(found.scores, "adaptive", 0.1)
        blocks, width = found.scores.shape
        flat = torch.randperm(blocks * width, generator=generator)[: len(chosen)]
        others = [(int(i) // width, int(i) % width) for i in flat]
        clean = float(scaled(editor.forward, prompt, answer, [], 1.0).mean())
        assert clean == pytest.approx(found.probability, rel=1e-4)
        falls.append(clean - float(suppress(editor.forward, prompt, answer, chosen).mean()))
        random_falls.append(clean - float(suppress(editor.forward, prompt, answer, others).mean()))
        # p is next to 1 here; a doubt makes room for a rise
        unsure = attribute(editor.forward, editor.tokens.pair(prompt, request.target_new), steps=10)
        raised = enhance(editor.forward, prompt, request.target_new, coarse(unsure.scores, "adaptive", 0.1))
        rises.append(float(raised.mean()) - unsure.probability)
    mean = [sum(values) / len(values) for values in (falls, random_falls, rises)]
    assert mean[0] > 0.3
    assert mean[0] > 5 * abs(mean[1])
    assert mean[2] > 0
