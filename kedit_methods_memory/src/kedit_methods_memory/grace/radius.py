"""A first radius from data: how near unrelated prompts come to each other.

Specification: GRACE, "Hyper-parameters": the 5th percentile of nearest-neighbour distances between unrelated prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools
from kedit_methods_memory.nearest import nearest
from kedit_methods_memory.projections import projection
from kedit_methods_memory.reading import read

Face: TypeAlias = Literal["input", "output"]


def suggested_radius(
    forward: ForwardTools,
    prompts: Sequence[str],
    layer: int,
    part: str = "mlp_out",
    quantile: float = 0.05,
    face: Face = "input",
) -> float:
    """A first ``eps0`` for a codebook at a projection: a quantile of each prompt's distance to the nearest other one.

    Args:
        prompts: texts that ask unrelated things, as many as can be had; equal ones count once.
        layer, part: where the codebook will be.
        face: ``input`` for a codebook of GRACE, ``output`` for a scope layer of MELO.

    Raises InputError for fewer than two different prompts, or a layer or part that the model does not have.
    """
    place = projection(forward.view, layer, part)
    different = list(dict.fromkeys(prompts))
    if len(different) < 2:
        raise InputError("a radius is measured between prompts; give at least two different ones")
    readings = read(forward, place, [forward.boundary.prompt(text).ids for text in different])
    queries = readings.inputs if face == "input" else readings.outputs
    found = []
    for row in range(len(queries)):
        others = torch.cat([queries[:row], queries[row + 1 :]])
        found.append(nearest(queries[row : row + 1], others).distance)
    return float(torch.cat(found).quantile(quantile))
