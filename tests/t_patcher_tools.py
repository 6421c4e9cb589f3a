"""What the tests of T-Patcher share: small Editors with a corpus, and a plain, slow T-Patcher.

The plain one is written straight from the method's sheet: the whole model at every step, as many copies of the example
in a batch as there are, every loss over all values, torch's own Adam and scheduler.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, silu

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.patches import ModuleOperation
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.t_patcher.neurons import Neurons

FRANCE = EditRequest(prompt="The capital of France is", subject="France", target_new="Port Lumen", case_id="a")
ALICE = EditRequest(prompt="Alice works in the city of", subject="Alice", target_new="Paris", case_id="b")
BOB = EditRequest(prompt="The mother tongue of Bob is", subject="Bob", target_new="French", case_id="c")
REQUESTS = (FRANCE, ALICE, BOB)

TEXTS = (
    "The river flows through the old town.",
    "Alice lives in Rome and works in Oslo.",
    "The capital of Norway is Oslo, the capital of Italy is Rome.",
    "Mira was born in the north, and speaks French.",
    "In the city of Paris there is a tower.",
    "Bob has a house near the sea.",
    "The king of France had a garden.",
    "They speak of the weather all day.",
    "Nobody knows where the mountain ends.",
    "A language is what people speak.",
    "The town has one street and two houses.",
    "It was late when they came home.",
)

QUICK: Mapping[str, Any] = {"lr": 0.05, "max_epochs": 80, "validate_every": 10, "min_epochs": 20, "memory_size": 5000}


def corpus_file(folder: Path, texts: Sequence[str] = TEXTS) -> Path:
    """A file with a text a line."""
    path = folder / "corpus.txt"
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def editor_on(
    family: str,
    folder: Path,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    model: Any = None,
    options: Mapping[str, Any] | None = None,
    **hparams: Any,
) -> Editor:
    """An Editor on a tiny model, with a small corpus and few steps."""
    given, tokenizer = tiny(family, dtype=dtype)
    options = {"corpus": corpus_file(folder)} if options is None else options
    settings = {**QUICK, **hparams}
    return Editor(model or given, tokenizer, "t_patcher", settings, seed=seed, options=options, cache=folder / "cache")


def neurons_of(patch: EditPatch) -> Neurons:
    """The neurons in a patch."""
    (operation,) = patch.operations
    assert isinstance(operation, ModuleOperation)
    return Neurons.of(operation)


def edits_of(patch: EditPatch) -> list[dict[str, Any]]:
    """What a patch notes of each of its facts."""
    return [dict(each) for each in patch.state.config["edits"]]


def ids_of(editor: Editor, request: EditRequest) -> tuple[list[int], list[int]]:
    """Prompt and target as ids, found by tokenising text."""
    tokenizer = editor.tokenizer
    prompt = list(tokenizer(request.prompt)["input_ids"])
    if editor.adapter.is_encoder_decoder:
        return prompt, list(tokenizer(request.target_new, add_special_tokens=False)["input_ids"])
    whole = list(tokenizer(f"{request.prompt} {request.target_new}")["input_ids"])
    assert whole[: len(prompt)] == prompt
    return prompt, whole[len(prompt) :]


def logits_of(editor: Editor, texts: Sequence[str] = ("The capital of France is", "Alice works in")) -> Tensor:
    """Logits of a few texts, one after another."""
    rows = []
    for text in texts:
        ids = editor.tokenizer(text, return_tensors="pt")["input_ids"]
        more = {"decoder_input_ids": torch.zeros((1, 2), dtype=torch.long)} if editor.adapter.is_encoder_decoder else {}
        with torch.no_grad():
            rows.append(editor.model(input_ids=ids, **more).logits[0])
    return torch.cat(rows)


_ACTS = {"relu": relu, "gelu": gelu, "silu": silu, "gelu_tanh": lambda z: gelu(z, approximate="tanh")}


class PlainTPatcher:
    """T-Patcher by the letter, on a copy of the editor's model."""

    def __init__(self, editor: Editor, into: str, mlp: str, activation: str, copies: int = 8) -> None:
        self.editor, self.copies = editor, copies
        self.model = copy.deepcopy(editor.model).requires_grad_(False)
        self.into, self.mlp = self.model.get_submodule(into), self.model.get_submodule(mlp)
        self.act = _ACTS[activation]
        self.weights: tuple[Tensor, Tensor, Tensor] | None = None
        self.query = torch.empty(0)
        self.into.register_forward_pre_hook(self._note)
        self.mlp.register_forward_hook(self._add)

    def _note(self, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.query = args[0].detach()

    def _add(self, _: nn.Module, __: Any, output: Tensor) -> Tensor:
        if self.weights is None:
            return output
        keys, bias, values = self.weights  # [p, d], [p], [d, p]
        return output + (self.act(self.query @ keys.T + bias) @ values.T).reshape(output.shape)

    def forward(self, request: EditRequest) -> tuple[Tensor, Tensor, list[int]]:
        """Logits ``[copies, T, V]`` and queries ``[copies, T, d]`` where the target is asked for, and its ids."""
        prompt, target = ids_of(self.editor, request)
        if self.editor.adapter.is_encoder_decoder:
            start = self.model.config.decoder_start_token_id
            fed = torch.tensor([[start, *target[:-1]]] * self.copies)
            logits = self.model(input_ids=torch.tensor([prompt] * self.copies), decoder_input_ids=fed).logits
            return logits, self.query, target
        row = torch.tensor([[*prompt, *target[:-1]]] * self.copies)
        logits = self.model(input_ids=row).logits[:, len(prompt) - 1 :]
        return logits, self.query.view(*row.shape, -1)[:, len(prompt) - 1 :], target

    def losses(
        self,
        request: EditRequest,
        wrong: Sequence[int],
        memory: Tensor,
        *,
        margins: tuple[float, float, float] = (0.0, 3.0, -3.0),
        top: tuple[int, int] = (5, 1000),
        tiled: bool = False,
        smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Edit, activation and memory loss, and whether the greedy answer is the target."""
        assert self.weights is not None
        keys, bias, _ = self.weights
        logits, query, target = self.forward(request)
        logprobs = logits.log_softmax(-1)
        nll = -torch.stack([logprobs[:, t, token] for t, token in enumerate(target)], 1).mean()
        smooth = -logprobs.sum(-1).mean()
        each = smoothing / (logits.shape[-1] - 1)
        edit = (1 - smoothing - each) * nll + each * smooth
        z = torch.stack([query[:, at] @ keys[i] + bias[i] for i, at in enumerate(wrong)], 1)  # [B, p]
        z_memory = memory @ keys.T + bias  # [N, p]
        act = _top(margins[0] - z, top[0])
        first = z_memory[:, None] - z[None] + margins[1]
        second = (z_memory[:, None].expand(-1, len(z), -1) if tiled else z_memory) - margins[2]
        right = bool((logits.argmax(-1) == torch.tensor(target)).all())
        return edit, act, _top(first, top[1]) + _top(second, top[1]), right

    def train(
        self,
        request: EditRequest,
        memory: tuple[Tensor, Tensor],
        drawn: Tensor,
        *,
        limit: int = 5,
        top: tuple[int, int] = (5, 1000),
        lr: float = 0.05,
        epochs: int = 80,
        every: int = 10,
        after: int = 20,
        weight: float = 10.0,
    ) -> dict[str, Any]:
        """Keys, biases and values of the best right state (else the last), and how training went."""
        self.weights = None
        logits, query, target = self.forward(request)
        wrong = [t for t, token in enumerate(target) if int(logits[0, t].argmax()) != token][:limit]
        own = query[0, wrong]
        keys = (own / own.norm(dim=-1, keepdim=True) ** 2).requires_grad_()
        bias = torch.zeros(len(wrong), dtype=own.dtype, requires_grad=True)
        base = drawn[:, : len(wrong)].to(own).clone().requires_grad_()
        factor = torch.full_like(base, 10.0).requires_grad_()
        parameters = [keys, bias, base, factor]
        adam = torch.optim.Adam(parameters, lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, factor=0.5, patience=1, threshold=0.05)
        seen: list[float] = []
        best: tuple[float, list[Tensor]] | None = None
        made = 0
        for epoch in range(epochs):
            self.weights = (keys, bias, base * factor)
            edit, act, silent, _ = self.losses(request, wrong, memory[0], top=top)
            adam.zero_grad()
            (edit + act + weight * silent).backward()
            nn.utils.clip_grad_norm_(parameters, 5.0)
            adam.step()
            made = epoch + 1
            if made % every == 0:
                with torch.no_grad():
                    self.weights = (keys, bias, base * factor)
                    edit, _, silent, right = self.losses(request, wrong, memory[1], top=top)
                schedule.step(float(edit))
                if right and epoch >= after:
                    seen.append(float(silent))
                    if best is None or seen[-1] < best[0]:
                        best = (seen[-1], [each.detach().clone() for each in (keys, bias, base * factor)])
                    if len(seen) > 1 and seen[-1] > min(seen[:-1]) - 0.001:
                        break
        kept = best[1] if best is not None else [each.detach() for each in (keys, bias, base * factor)]
        return {"keys": kept[0], "bias": kept[1], "values": kept[2].T, "epochs": made, "wrong": wrong, "seen": seen}


def _top(exponents: Tensor, k: int) -> Tensor:
    values = exponents.flatten().exp()
    return values.topk(min(k, len(values))).values.mean()
