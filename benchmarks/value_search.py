"""The value search of ROME, plain against fast: same result, how much less time.

One request as rows of random ids on models of random weights: 12 layers, width 768, 10 contexts and the essence (11
rows) of 24 tokens, the subject's end at token 16, block 5, 20 steps. The plain path runs the whole model forward and
back for every step, with logits everywhere, as published code does; the fast path runs what the vector changes.

    python benchmarks/value_search.py [--steps 20] [--repeat 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_methods_locate.hparams import RomeHyperParams
from kedit_methods_locate.rows import Rewrite, Row
from kedit_methods_locate.value import Values, search

LAYERS, WIDTH, BLOCK = 12, 768, 5
ROWS, TOKENS, SUBJECT, TARGET = 11, 24, 16, 2
WANTED = {"gpt2": 2.5, "llama": 3.0}


def model_of(shape: str) -> Any:
    """A model of random weights, in eval mode."""
    if shape == "gpt2":
        return GPT2LMHeadModel(GPT2Config(n_layer=LAYERS, n_embd=WIDTH, n_head=12)).eval()
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=WIDTH,
        intermediate_size=2048,
        num_attention_heads=12,
        num_key_value_heads=12,
        vocab_size=32000,
    )
    return LlamaForCausalLM(config).eval()


def request(vocabulary: int) -> Rewrite:
    """Rows as ROME lays them out: the same prompt behind contexts of the same length, and the essence."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(10, vocabulary, (count,), generator=generator).tolist()

    length = TOKENS - (TARGET - 1)  # the row is the prompt and all but the last of the target
    prompt = ids(length)
    rows = [Row((*ids(SUBJECT // 2), *prompt[SUBJECT // 2 :]), SUBJECT, length - 1) for _ in range(ROWS - 1)]
    essence = Row((*prompt[: SUBJECT + 1], *ids(TOKENS - SUBJECT - 1)), SUBJECT, TOKENS - 1)
    return Rewrite(tuple(rows), tuple(ids(TARGET)), essence)


def timed(tools: ForwardTools, rewrite: Rewrite, settings: RomeHyperParams) -> tuple[float, Values]:
    """Seconds of one search, and what it found."""
    started = time.perf_counter()
    values = search(tools, [rewrite], BLOCK, settings)
    return time.perf_counter() - started, values


def measure(shape: str, steps: int, repeat: int) -> dict[str, Any]:
    """Times of both paths, taken in turns in one process, and how equal their results are."""
    torch.manual_seed(0)
    model = model_of(shape)
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    boundary = TokenBoundary(tiny_tokenizer("byte_bpe"))
    settings = RomeHyperParams(layer=BLOCK, v_num_grad_steps=steps, early_stop_loss=0.0, clamp_norm_factor=None)
    rewrite = request(view.vocab_size)
    paths = {fast: ForwardTools(model, view, boundary, fast=fast) for fast in (False, True)}
    for tools in paths.values():  # warm, and the fast path's one comparison with the plain one
        search(tools, [rewrite], BLOCK, RomeHyperParams(layer=BLOCK, v_num_grad_steps=2))
    times: dict[bool, list[float]] = {False: [], True: []}
    found: dict[bool, Values] = {}
    for _ in range(repeat):
        for fast, tools in paths.items():
            seconds, found[fast] = timed(tools, rewrite, settings)
            times[fast].append(seconds)
    plain, fast = found[False], found[True]
    traces = zip(plain.traces[0], fast.traces[0], strict=True)
    ratios = [a / b for a, b in zip(times[False], times[True], strict=True)]
    return {
        "shape": shape,
        "steps": steps,
        "plain_seconds": min(times[False]),
        "fast_seconds": min(times[True]),
        "ratio": min(times[False]) / min(times[True]),
        "ratio_median": statistics.median(ratios),
        "wanted": WANTED[shape],
        "delta_difference": float((plain.delta - fast.delta).norm() / plain.delta.norm()),
        "delta_cosine": float(torch.cosine_similarity(plain.delta, fast.delta)),
        "loss_difference": max(abs(a - b) / max(abs(a), 1e-9) for a, b in traces),
        "loss": [plain.traces[0][0], plain.traces[0][-1]],
    }


def main() -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="forward passes of a search")
    parser.add_argument("--repeat", type=int, default=3, help="searches on each path")
    parser.add_argument("--threads", type=int, default=None, help="threads of torch")
    parser.add_argument("--shapes", nargs="+", choices=sorted(WANTED), default=sorted(WANTED))
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    results = [measure(shape, options.steps, options.repeat) for shape in options.shapes]
    if options.json:
        print(json.dumps({"threads": torch.get_num_threads(), "results": results}, indent=2))
        return
    print(
        f"{'shape':8}{'plain s':>10}{'fast s':>10}{'ratio':>8}{'wanted':>8}{'d delta':>12}{'cosine':>10}{'d loss':>10}"
    )
    for r in results:
        print(
            f"{r['shape']:8}{r['plain_seconds']:10.2f}{r['fast_seconds']:10.2f}{r['ratio']:8.2f}{r['wanted']:8.1f}"
            f"{r['delta_difference']:12.1e}{r['delta_cosine']:10.6f}{r['loss_difference']:10.1e}"
        )


if __name__ == "__main__":
    main()
