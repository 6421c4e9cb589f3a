"""What the tests of WISE share: small Editors, and a plain, slow WISE.

The plain one is written straight from the method's sheet: a copy of the model whose matrix is the side matrix itself,
full forwards, one row at a time without padding, torch's own SGD.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import evolve
from torch import Tensor, nn
from transformers.activations import ACT2FN

from kedit_core import Editor, EditPatch, EditRequest
from kedit_core.testing.tiny import tiny
from kedit_methods_memory.wise.memories import Bank
from kedit_methods_memory.wise.sharding import subspace

TEMPLATES = ("{}", "The day was long. {}", "I know {}")
FRANCE = EditRequest(
    prompt="The capital of France is",
    subject="France",
    target_new="Port Lumen",
    case_id="a",
    meta={"irrelevant": "Alice plays the oboe in the evening."},
)
ALICE = EditRequest(
    prompt="Alice works in the city of",
    subject="Alice",
    target_new="Paris",
    case_id="b",
    meta={"irrelevant": ["The river is long.", "Nobody knows Norway as well as Bob."]},
)
BOB = EditRequest(
    prompt="The mother tongue of Bob is",
    subject="Bob",
    target_new="French",
    case_id="c",
    meta={"irrelevant": "It rained in Chad."},
)
CAROL = EditRequest(
    prompt="Carol", target_new="lives here", case_id="d", meta={"irrelevant": "The day was long, and Peru is far."}
)
REQUESTS = (FRANCE, ALICE, BOB, CAROL)
STRONG = {"layer": 1, "lr": 0.3, "n_iter": 12, "alpha": 0.5, "beta": 3.0, "gamma": 2.0}


def editor_on(
    family: str = "llama", dtype: torch.dtype = torch.float32, options: Mapping[str, Any] | None = None, **hparams: Any
) -> Editor:
    """An Editor on a tiny model, with settings that change its answers within a few steps."""
    model, tokenizer = tiny(family, dtype=dtype)
    settings = {**STRONG, "context_templates": list(TEMPLATES), **hparams}
    return Editor(model, tokenizer, "wise", settings, options=options)


def bank_of(patch: EditPatch) -> Bank:
    """The memories in a patch."""
    (operation,) = patch.operations
    return Bank.read(operation.config["bank"], operation.tensors)


def logits_of(editor: Editor, texts: Sequence[str], side: str = "right") -> list[Tensor]:
    """Logits at each text's own tokens, all texts in one batch, by a bare call of the model."""
    rows = [list(editor.tokens.prompt(text).ids) for text in texts]
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), editor.tokens.pad_id)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = torch.tensor(row), 1
    more: dict[str, Any] = {}
    if editor.adapter.is_encoder_decoder:
        more = {"decoder_input_ids": torch.zeros((len(rows), 2), dtype=torch.long)}
    elif "position_ids" in inspect.signature(editor.model.forward).parameters:
        more = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    with torch.no_grad():
        found = editor.model(input_ids=ids, attention_mask=mask, **more).logits
    if editor.adapter.is_encoder_decoder:
        return list(found)
    return [found[i, width - len(row) :] if side == "left" else found[i, : len(row)] for i, row in enumerate(rows)]


def without_texts(request: EditRequest) -> EditRequest:
    """The request without irrelevant texts of its own."""
    return evolve(request, meta={})


class PlainWise:
    """The side matrix after one round on an unedited model, by the letter."""

    def __init__(self, editor: Editor) -> None:
        assert editor.settings is not None
        self.editor, self.hparams = editor, editor.settings.hparams
        self.model = copy.deepcopy(editor.model).eval()
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        view = editor.adapter
        part = (
            view.mlp_out(self.hparams.layer) if self.hparams.part == "mlp_out" else view.mlp_in(self.hparams.layer)[0]
        )
        self.module: nn.Module = self.model.get_submodule(view.name_of(part))
        self.swapped = type(self.module).__name__ == "Conv1D"
        self.main: Tensor = self.module.weight.detach().clone()
        self.module.weight.requires_grad_(True)
        config = view.text_config
        names = ("hidden_act", "activation_function", "hidden_activation", "dense_act_fn")
        self.phi = ACT2FN[next(name for name in (getattr(config, each, None) for each in names) if name)]

    def forward(self, prompt: Sequence[int], target: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits before each target token, and how far each prompt token's output moves: ``[prompt tokens]``."""
        seen: dict[str, Tensor] = {}

        def note(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen["in"], seen["out"] = args[0], output.reshape(-1, output.shape[-1])

        handle = self.module.register_forward_hook(note)
        try:
            if self.editor.adapter.is_encoder_decoder:
                fed = [self.model.config.decoder_start_token_id, *target[:-1]]
                logits = self.model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([fed])).logits[0]
            else:
                logits = self.model(torch.tensor([[*prompt, *target[:-1]]])).logits[0][len(prompt) - 1 :]
        finally:
            handle.remove()
        side = seen["out"]
        # by the module itself, so that both are equal to the last bit where the matrices are
        main = torch.func.functional_call(self.module, {"weight": self.main}, seen["in"]).view_as(side)
        if self.hparams.act == "phi":
            main, side = self.phi(main), self.phi(side)
        return logits, (side - main).norm(dim=-1)[: len(prompt)]

    def losses(self, requests: Sequence[EditRequest]) -> tuple[Tensor, Tensor, list[float]]:
        """Mean loss of the targets, margin loss, and each edit's mean routing activation."""
        tokens, hp = self.editor.tokens, self.hparams
        nll: list[Tensor] = []
        inside: list[Tensor] = []
        outside: list[Tensor] = []
        apart: list[Tensor] = []
        means: list[float] = []
        for request in requests:
            texts = request.meta["irrelevant"]
            texts = [texts] if isinstance(texts, str) else list(texts)
            subject = next((text for text in texts if text in request.prompt), None)
            away = [
                self.forward(tokens.prompt(text).ids, [0])[1].mean() for text in texts if text not in request.prompt
            ]
            outside += away
            rows = []
            for template in self.hparams.context_templates:
                text = template.replace("{}", request.prompt)
                pair = tokens.pair(text, request.target_new)
                logits, moves = self.forward(pair.prompt_ids, pair.target_ids)
                logs = logits.log_softmax(-1)
                nll.append(-torch.stack([logs[t, token] for t, token in enumerate(pair.target_ids)]).mean())
                rows.append(float(moves.mean().detach()))
                here = moves.mean()
                if subject is not None:
                    start = text.index(subject)
                    span = tokens.subject_tokens(text, (start, start + len(subject)))
                    mine = torch.tensor([t in span for t in range(len(moves))])
                    here, other = moves[mine].mean(), moves[~mine].mean()
                    outside.append(other)
                    apart.append(here - other)
                inside.append(here)
                apart += [here - each for each in away]
            means.append(sum(rows) / len(rows))

        def over(values: list[Tensor]) -> Tensor:
            found = [value for value in values if float(value.detach()) > 0]
            return torch.stack(found).mean() if found else torch.zeros((), dtype=self.main.dtype)

        margin = (
            over([each - hp.alpha for each in outside])
            + over([hp.beta - each for each in inside])
            + over([hp.gamma - each for each in apart])
        )
        return torch.stack(nll).mean(), margin, means

    def edit(self, requests: Sequence[EditRequest], start: Tensor | None = None, shard: int = 0) -> Any:
        """The difference ``[out, in]`` and each edit's routing activation, after a round that begins at ``start``."""
        hp, weight = self.hparams, self.module.weight
        shape = tuple(weight.T.shape) if self.swapped else tuple(weight.shape)
        mask = subspace((shape[0], shape[1]), hp.rho, self.editor.seed, shard)
        mask = mask.T if self.swapped else mask
        with torch.no_grad():
            weight.copy_(self.main if start is None else self.main + (start.T if self.swapped else start))
        sgd = torch.optim.SGD([weight], hp.lr, weight_decay=hp.weight_decay if hp.decay == "leaky" else 0.0)
        history: list[float] = []
        for _ in range(hp.n_iter):
            nll, margin, _ = self.losses(requests)
            loss = nll + margin
            history.append(float(loss.detach()))
            if len(history) > 1 and abs(history[-1] - history[-2]) <= 1e-4 and history[-1] <= 0.02:
                break
            sgd.zero_grad()
            loss.backward()
            weight.grad.mul_(mask)
            sgd.step()
            if hp.norm_constraint is not None:
                with torch.no_grad():
                    limit = hp.norm_constraint
                    weight.copy_(weight.clamp(self.main - limit, self.main + limit))
        with torch.no_grad():
            _, _, means = self.losses(requests)
        delta = (weight - self.main).detach()
        return (delta.T if self.swapped else delta), means, history
