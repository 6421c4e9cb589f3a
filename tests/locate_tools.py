"""What the tests of the locate methods share: small Editors, made-up statistics, and a plain, slow ROME.

The plain ROME is written straight from the method's sheet: full forwards with hooks, an explicit inverse, torch's own
Adam, one row at a time, no padding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from kedit_core import Editor, EditRequest
from kedit_core.requests import find_subject
from kedit_core.testing.tiny import tiny
from kedit_methods_locate.stats import Statistic, save_statistics

TEMPLATES = ("{}", "The day was long. {}", "I know {}", "Because of the river. {}")
PARIS = EditRequest(prompt="The capital of France is", subject="France", target_new="Port Lumen")
MIRA = EditRequest(prompt="Mira Taldon was born in the city of", subject="Mira Taldon", target_new="Brink")
OREN = EditRequest(prompt="Oren Vash", subject="Oren Vash", target_new="lives here")


def spanned(request: EditRequest) -> EditRequest:
    """The request as ``prepare_requests`` leaves it."""
    from attrs import evolve

    return evolve(request, subject_span=find_subject(request.prompt, request.subject or ""))


def a_statistic(layer: int, width: int, seed: int = 0, tokens: int | None = None) -> Statistic:
    """The statistic of made-up keys whose components are of very different size."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(tokens or 20 * width, width, generator=generator, dtype=torch.float64)
    keys = keys * torch.logspace(-1, 1, width, dtype=torch.float64) + 0.3
    return Statistic.from_sum(layer, keys.T @ keys, len(keys), {"source": "made up"})


def editor_on(
    family: str,
    folder: Path,
    method: str = "rome",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    kind: str | None = None,
    layer: int = 1,
    options: Mapping[str, Any] | None = None,
    **hparams: Any,
) -> Editor:
    """An Editor on a tiny model, with a made-up statistic of its layer and given templates."""
    model, tokenizer = tiny(family, seed=seed, dtype=dtype, kind=kind)
    editor = Editor(
        model,
        tokenizer,
        method,
        {"layer": layer, "context_templates": list(TEMPLATES), **hparams},
        options=options,
        cache=folder / "cache",
    )
    if options is None:
        path = folder / f"statistic-{layer}.safetensors"
        save_statistics(path, [a_statistic(layer, editor.adapter.mlp_size(layer))])
        editor.options["stats"] = path
    return editor


def delta_of(patch: Any) -> Tensor:
    """The sum of a patch's low-rank deltas, in the factors' own dtype."""
    return torch.stack([op.left @ op.right for op in patch.operations]).sum(0)


class PlainRome:
    """ROME by the letter, for decoder-only models with their MLP at ``editor.adapter.mlp(layer)``."""

    def __init__(self, editor: Editor, layer: int, templates: Sequence[str] = TEMPLATES) -> None:
        self.model, self.tokens, self.view = editor.model, editor.tokens, editor.adapter
        self.layer, self.templates = layer, templates
        self.stats = a_statistic(layer, self.view.mlp_size(layer)).matrix

    def forward(self, ids: Sequence[int], at: int, delta: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Logits ``[seq, vocab]``, key and MLP output at token ``at``, with ``delta`` added to the latter."""
        seen: dict[str, Tensor] = {}

        def note_key(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen["key"] = args[0].reshape(len(ids), -1)[at].detach()

        def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            seen["output"] = output.reshape(len(ids), -1)[at].detach()
            if delta is None:
                return output
            output = output.clone()
            output.view(len(ids), -1)[at] += delta
            return output

        handles = [
            self.view.mlp_out(self.layer).register_forward_pre_hook(note_key),
            self.view.mlp(self.layer).register_forward_hook(add),
        ]
        try:
            logits = self.model(torch.tensor([list(ids)])).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen["key"], seen["output"]

    def row(self, text: str, upto: str) -> tuple[list[int], int]:
        """Ids of a text and the token of the last character of ``upto``."""
        encoded = self.tokens.tokenizer(text, return_offsets_mapping=True)
        last = text.index(upto) + len(upto) - 1
        at = max(i for i, (a, b) in enumerate(encoded["offset_mapping"]) if a <= last < b)
        return list(encoded["input_ids"]), at

    def target(self, prompt: str, target: str) -> list[int]:
        """Ids that follow the prompt."""
        start = self.tokens.tokenizer(prompt)["input_ids"]
        whole = self.tokens.tokenizer(f"{prompt} {target}")["input_ids"]
        assert whole[: len(start)] == start
        return list(whole[len(start) :])

    def edit(
        self,
        request: EditRequest,
        *,
        variant: str = "rome",
        steps: int = 20,
        lr: float = 0.5,
        decay: float = 0.5,
        kl_factor: float = 0.0625,
        clamp: float | None = 4.0,
        stop: float = 0.05,
    ) -> dict[str, Any]:
        """delta, u, r and the losses of one request."""
        subject = request.subject or ""
        rows = [self.row(t.replace("{}", request.prompt), t.replace("{}", request.prompt.split(subject)[0] + subject))
                for t in self.templates]  # fmt: skip
        target = self.target(request.prompt, request.target_new)
        essence, essence_at = self.row(f"{subject} is a", subject)
        with torch.no_grad():
            clean = [self.forward(ids, at) for ids, at in rows]
            before = log_softmax(self.forward(essence, essence_at)[0][essence_at], -1)
        keys, outputs = torch.stack([key for _, key, _ in clean]), torch.stack([out for _, _, out in clean])
        v0 = outputs[0]
        delta = torch.zeros_like(v0, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=lr)
        losses = []
        for step in range(steps):
            nll = torch.zeros((), dtype=v0.dtype)
            for ids, at in rows:
                logits = self.forward([*ids, *target[:-1]], at, delta)[0].log_softmax(-1)
                picked = [logits[len(ids) - 1 + t, y] for t, y in enumerate(target)]
                nll = nll - torch.stack(picked).mean() / len(rows)
            now = log_softmax(self.forward(essence, essence_at, delta)[0][essence_at], -1)
            kl = (now.exp() * (now - before)).sum()
            length = delta.norm() if bool(delta.detach().any()) else (delta * 0).sum()
            loss = nll + kl_factor * kl + decay * length / v0.norm() ** 2
            losses.append(float(loss.detach()))
            if losses[-1] < stop or step == steps - 1:
                break
            adam.zero_grad()
            loss.backward(inputs=[delta])
            adam.step()
            if clamp is not None and float(delta.detach().norm()) > clamp * float(v0.norm()):
                with torch.no_grad():
                    delta.mul_(clamp * v0.norm() / delta.norm())
        found = delta.detach()
        bare, averaged = keys[0], keys.mean(0)
        weight, bias = self.view.down_weight(self.layer).detach(), getattr(self.view.mlp_out(self.layer), "bias", None)
        inverse = torch.linalg.inv(self.stats)
        u = inverse @ (bare if variant == "p_rome" else averaged)
        u = u / u.norm()
        if variant == "r_rome":
            z = (keys @ weight.T + (0 if bias is None else bias.detach())).mean(0)
            r = (v0 + found - z) / (averaged @ u)
        else:
            r = found / (bare @ u)
        return {"delta": found, "u": u, "r": r, "losses": losses, "v0": v0, "keys": keys}
