"""Reading what goes into and out of a projection at one token of each prompt.

Prompts are read one by one, without padding: the same prompt then gives the same numbers, bit for bit, whatever it is
edited with, and a prompt that comes again is known to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from attrs import frozen
from torch import Tensor

from kedit_core.forward import ForwardTools
from kedit_methods_memory.projections import Projection


@frozen(eq=False)
class Readings:
    """``inputs`` ``[n, in]`` and ``outputs`` ``[n, out]`` at the chosen tokens, in the model's dtype, on the CPU."""

    inputs: Tensor
    outputs: Tensor


def read(forward: ForwardTools, projection: Projection, rows: Sequence[Sequence[int]]) -> Readings:
    """Read at each row's last token; the pass ends with the projection. Rows are what the edited stack is fed."""
    inputs, outputs = [], []
    for row in rows:
        batch = forward.batch([row], targets=[[forward.boundary.pad_id]])
        at = torch.tensor([[0, len(row) - 1]])
        found = forward.run(batch, capture=[projection.input, projection.output], at=at).activations
        inputs.append(found[projection.input].cpu())
        outputs.append(found[projection.output].cpu())
    return Readings(torch.cat(inputs), torch.cat(outputs))
