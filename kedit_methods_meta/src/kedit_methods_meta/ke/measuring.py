"""How well the updates of a step do, in figures that mean the same at any time of a training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import Pair
from kedit_core.training.losses import log_softmax
from kedit_methods_meta.questions import Questions


@frozen(eq=False)
class Rows:
    """What an edited model reads in a step.

    Attributes:
        pairs: the edits themselves, then the rephrases, then the unrelated.
        group: ``[pairs]`` the edit that each is under.
        edits: how many edits there are.
        told: how many edits and rephrases.
        outer: ``[pairs]`` false for edits that have a rephrase, which is asked in their place where only one is.
    """

    pairs: Sequence[Pair]
    group: Tensor
    edits: int
    told: int
    outer: Tensor


def measured(asked: Questions, rows: Rows, logits: Tensor, base: Tensor) -> dict[str, tuple[float, float]]:
    """name -> (sum, weight), as :class:`~kedit_core.training.Stepped` has them.

    - ``edit/acc``, ``rephrase/acc``: every token of the new answer is the likeliest after those before it, so that
      greedy decoding gives it.
    - ``kept``: at every token of an unrelated prompt's answer the base's likeliest token still is.
    - ``joint/acc``: edit and rephrase right, times the share of the unrelated kept; it says which editor is best.
    - ``nll/edit``: of the new answers' tokens, edits and rephrases.

    Args:
        asked: the rows' questions. logits: ``[n, vocabulary]`` of the edited model at their cells.
        base: the base's logits at the cells of the unrelated.
    """
    home = logits.device
    row, tokens = asked.row.to(home), asked.tokens.to(home).clone()
    told = row < rows.told
    tokens[~told] = base.to(home).argmax(-1)
    missed = asked.asked.to(home) & (logits.argmax(-1) != tokens)
    wrong = torch.bincount(row[missed], minlength=len(rows.pairs))
    right = (wrong == 0).double()
    parts = torch.split(right, [rows.edits, rows.told - rows.edits, len(rows.pairs) - rows.told])
    groups = torch.split(rows.group.to(home), [len(part) for part in parts])
    reworded, unmoved = (_by_edit(parts[i], groups[i], rows.edits) for i in (1, 2))
    logs = log_softmax(logits[told]).gather(1, tokens[told].unsqueeze(1))
    return {
        "edit/acc": (float(parts[0].sum()), float(rows.edits)),
        "rephrase/acc": (float(parts[1].sum()), float(len(parts[1]))),
        "kept": (float(parts[2].sum()), float(len(parts[2]))),
        "joint/acc": (float((parts[0] * reworded * unmoved).sum()), float(rows.edits)),
        "nll/edit": (-float(logs.sum()), float(len(logs))),
    }


def _by_edit(values: Tensor, group: Tensor, count: int) -> Tensor:
    """``[count]`` mean of each edit's values; 1 for an edit without any."""
    sums = values.new_zeros(count).index_add(0, group, values)
    numbers = torch.bincount(group, minlength=count)
    return torch.where(numbers > 0, sums / numbers.clamp(min=1), torch.ones_like(sums))
