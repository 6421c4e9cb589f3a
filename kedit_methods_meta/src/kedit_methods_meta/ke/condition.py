"""The text that an editor is given of an edit, and the network that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

from kedit_core.editing import EditContext
from kedit_core.forward import Pair, generate_ids
from kedit_methods_meta.hparams.ke import KeEditorSettings

Condition: TypeAlias = tuple[int, ...]
"""Token ids of an edit's text."""


def condition_text(old: str, new: str, prompt: str) -> str:
    """What an edit is told as: the model's answer so far, the new one, and the prompt."""
    return f"{old} >> {new} || {prompt}"


def condition_ids(context: EditContext, text: str, tokens: int) -> Condition:
    """The first ``tokens`` ids of an edit's text, with the tokenizer's special tokens."""
    return context.tokens.prompt(text).ids[:tokens]


def answers_so_far(context: EditContext, pairs: Sequence[Pair]) -> list[str]:
    """What the model, as it is, answers to each prompt: greedily, on one line, as many tokens as the new answer has."""
    return Sayings(context).of(pairs)


class Sayings:
    """What a model that stays as it is answers to prompts, so that none is asked twice.

    Args:
        kept: prompts whose answers are remembered; the oldest are forgotten first.
    """

    def __init__(self, context: EditContext, kept: int = 1 << 16) -> None:
        self._context, self._kept = context, kept
        self._said: dict[tuple[int, ...], tuple[int, list[int]]] = {}  # prompt -> tokens asked for, ids given

    def of(self, pairs: Sequence[Pair]) -> list[str]:
        """As :func:`answers_so_far`."""
        texts = [
            self._context.tokens.continuation(pair.prompt_ids, ids).strip()
            for pair, ids in zip(pairs, self.ids(pairs), strict=True)
        ]
        return [text.splitlines()[0] if text else "" for text in texts]

    def ids(self, pairs: Sequence[Pair]) -> list[tuple[int, ...]]:
        """Ids of the answers, without what ends them; unknown prompts are asked together."""
        wanted: dict[tuple[int, ...], int] = {}
        for pair in pairs:
            wanted[pair.prompt_ids] = max(len(pair.target_ids), wanted.get(pair.prompt_ids, 0))
        known = {ids: self._said[ids] for ids in wanted if ids in self._said and self._said[ids][0] >= wanted[ids]}
        if missing := [ids for ids in wanted if ids not in known]:
            most = max(wanted[ids] for ids in missing)
            context = self._context
            said = generate_ids(
                context.forward.model, context.adapter, context.tokens, missing, most, scope=context.forward.scope
            )
            known |= {ids: (most, new) for ids, new in zip(missing, said, strict=True)}
            self._said |= {ids: known[ids] for ids in missing}
            for ids in list(self._said)[: max(0, len(self._said) - self._kept)]:
                del self._said[ids]
        # writing greedily, a shorter answer is the beginning of a longer one
        return [tuple(known[pair.prompt_ids][1][: len(pair.target_ids)]) for pair in pairs]


class ConditionEncoder(nn.Module):
    """Reads an edit's text with an LSTM in both directions, from embeddings that begin as a copy of the base's.

    Args:
        vocabulary, width: of the embeddings.
        padding: the tokenizer's pad token, whose embedding is not learned; None if it has none. Rows end by their
            lengths, not by it.
        generator: of the first numbers, in the ranges that torch gives such modules; None leaves them to be loaded.
    """

    def __init__(
        self,
        vocabulary: int,
        width: int,
        padding: int | None,
        settings: KeEditorSettings,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        size, lstm = settings.condition_size, settings.lstm_size
        # made without numbers, since torch's own first ones come from the global random state
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=padding, device="meta").to_empty(device="cpu")
        self.lstm = nn.LSTM(width, lstm, batch_first=True, bidirectional=True, device="meta").to_empty(device="cpu")
        self.linear = nn.Linear(2 * lstm, size, device="meta").to_empty(device="cpu")
        if generator is not None:
            start(self.lstm, lstm**-0.5, generator)
            start(self.linear, (2 * lstm) ** -0.5, generator)

    def forward(self, conditions: Sequence[Condition]) -> Tensor:
        """``[conditions, condition_size]``, between -1 and 1."""
        home = self.linear.weight.device
        rows = pad_sequence([torch.tensor(ids) for ids in conditions], batch_first=True).to(home)
        lengths = torch.tensor([len(ids) for ids in conditions])
        packed = pack_padded_sequence(self.embedding(rows), lengths, batch_first=True, enforce_sorted=False)
        _, (hidden, _) = self.lstm(packed)
        read: Tensor = torch.tanh(self.linear(torch.cat([hidden[0], hidden[1]], dim=-1)))
        return read


@torch.no_grad()
def start(module: nn.Module, bound: float, generator: torch.Generator) -> None:
    """Draw all parameters of a module evenly between ``-bound`` and ``bound``."""
    for parameter in module.parameters():
        parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))
