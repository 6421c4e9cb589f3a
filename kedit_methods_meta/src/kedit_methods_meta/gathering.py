"""Counting rows into normalisers so that these are equal in all processes of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from kedit_core.training import BaseTrainer
from kedit_methods_meta.shape_nets import Counted


def observe_everywhere(trainer: BaseTrainer[Any], observed: Sequence[Counted]) -> None:
    """Count what each normaliser has new of all processes in, in the processes' order.

    Every process must call it with the same normalisers in the same order; it may have no rows for some.
    """
    if not observed:
        return
    own = [torch.cat([part.reshape(-1) for part in summary]) for _, summary in observed]
    widths = [len(each) for each in own]
    for told in trainer.gather(torch.cat(own).unsqueeze(0)):
        for (normaliser, _), numbers in zip(observed, torch.split(told[0], widths), strict=True):
            width = (len(numbers) - 1) // 2
            count, mean, m2 = torch.split(numbers.to(normaliser.mean), [1, width, width])
            normaliser.merge(count[0], mean, m2)
