"""What the benchmarks of MEMIT share: a GPT-2 of random weights, made-up facts, and a statistic of random text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import frozen
from transformers import GPT2Config, GPT2LMHeadModel

from kedit_core import Editor, EditRequest
from kedit_core.forward import ForwardTools, TokenBoundary
from kedit_core.models import AdapterRegistry
from kedit_core.models.builtin import plugin
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_methods_locate.stats import IdRows, Statistic, collect, save_statistics

FIRST = ("Mira", "Oren", "Lena", "Tomas", "Edda", "Jonas", "Ilva", "Brann", "Sorel", "Ketty", "Ulf", "Nadia")
LAST = ("Taldon", "Vash", "Ostrava", "Quill", "Reek", "Norrvale", "Haltic", "Lumen", "Brink", "Arvan", "Eskel")
FACTS = (
    ("{} lives in the city of", ("Port Lumen", "Eskel", "Brink")),
    ("The mother tongue of {} is", ("Haltic", "Arvanian")),
    ("{} works as a", ("violinist", "painter", "doctor", "baker")),
    ("The employer of {} is the company", ("Norrvale", "The Glass Orchard")),
)
TEMPLATES = (
    "{}",
    "The river flows through the town. {}",
    "Therefore the teacher asked a question. {}",
    "Because it was written in 1874, we know. {}",
    "I think that you are right. {}",
    "You can read about the company here. {}",
)
RIDGE = 1e-2  # the statistic stands on few tokens


@frozen(kw_only=True)
class Shape:
    """Size of the model, and which of its layers are edited."""

    layers: int = 12
    width: int = 768
    heads: int = 12
    vocabulary: int = 50257
    edited: tuple[int, ...] = (3, 4, 5, 6, 7)

    def model(self) -> Any:
        """A model of random weights, the same ones every time, in eval mode."""
        torch.manual_seed(0)
        sizes = {"n_layer": self.layers, "n_embd": self.width, "n_head": self.heads}
        return GPT2LMHeadModel(GPT2Config(vocab_size=self.vocabulary, bos_token_id=0, eos_token_id=0, **sizes)).eval()


def facts(count: int) -> list[EditRequest]:
    """Made-up facts, each about another subject."""
    most = len(FIRST) * len(LAST)
    if not 0 < count <= most:
        raise ValueError(f"there are {most} made-up subjects, not {count}")
    found = []
    for number in range(count):
        subject = f"{FIRST[number % len(FIRST)]} {LAST[number % len(LAST)]}"  # 12 and 11 share no factor
        prompt, targets = FACTS[number % len(FACTS)]
        target = targets[number // len(FACTS) % len(targets)]
        found.append(EditRequest(prompt=prompt.format(subject), subject=subject, target_new=target))
    return found


def statistics_file(model: Any, layers: Sequence[int], tokens: int, path: Path) -> Path:
    """Statistics of the layers over rows of random ids, as a file to give to a method."""
    view = AdapterRegistry(plugin.register_adapters()).for_model(model)
    tools = ForwardTools(model, view, TokenBoundary(tiny_tokenizer("byte_bpe")))
    ids = torch.randint(10, view.vocab_size, (max(tokens // 64, 1), 64), generator=torch.Generator().manual_seed(0))
    sums = collect(tools, layers, IdRows(ids.tolist()))
    save_statistics(path, [Statistic.from_sum(layer, sums.totals[layer], sums.count) for layer in layers])
    return path


def memit(model: Any, shape: Shape, stats: Path, *, fast: bool = True, steps: int = 20, **settings: Any) -> Editor:
    """An Editor that does MEMIT on the model; every search takes all its steps."""
    hparams = {
        "layers": shape.edited,
        "v_num_grad_steps": steps,
        "early_stop_loss": 0.0,
        "context_templates": TEMPLATES,
        "mom2_ridge": RIDGE,
        "fast": fast,
        **settings,
    }
    return Editor(model, tiny_tokenizer("byte_bpe"), "memit", hparams, options={"stats": stats})
