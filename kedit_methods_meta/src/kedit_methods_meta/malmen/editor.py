"""A MALMEN editor: nets, a step size and a ridge for each edited weight, and what it wants outputs to become."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from attrs import frozen
from torch import Tensor, nn

from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.malmen import MalmenEditorSettings
from kedit_methods_meta.malmen.nets import KeyNet
from kedit_methods_meta.malmen.solve import Normal, ridge_of
from kedit_methods_meta.normaliser import Normaliser
from kedit_methods_meta.places import Place
from kedit_methods_meta.shape_nets import Counted, EditorModule


@frozen(eq=False)
class Chunk:
    """Some rows of one weight with the change of output that is wanted for each.

    Attributes:
        name: of the weight. rows: which of its rows.
        values: ``[n, out]``, differentiable in the editor's parameters.
    """

    name: str
    rows: slice
    values: Tensor


class MalmenEditor(EditorModule):
    """Wanted changes ``D_i = -eta <K_i, K^_i> G^_i`` of each token's output, and the ridge regression on them.

    Tan et al. 2024 (arXiv 2311.04661), section 3: what the update ``-eta K^ G^^T`` of one token would change for its
    own key ``K_i``.

    Args:
        places: the edited weights, in the model's order.
        eta, log_ridge: what each one's step size and ridge start at.
        generator: of the nets' first numbers; None for an editor whose numbers are loaded.
    """

    settings_class = MalmenEditorSettings
    settings: MalmenEditorSettings

    def __init__(
        self,
        places: Sequence[Place],
        settings: MalmenEditorSettings,
        eta: float = 0.0,
        log_ridge: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(places, settings, generator=generator)
        self.eta = nn.Parameter(torch.full((len(self.places),), eta))
        self.log_ridge = nn.Parameter(torch.full((len(self.places),), log_ridge))

    def make_net(self, width: int, out: int, modes: int, generator: torch.Generator | None) -> KeyNet:
        return KeyNet(width, out, modes, self.settings, generator)

    def chunks(self, factors: Mapping[str, Factors]) -> Iterator[Chunk]:
        """Wanted changes, ``settings.chunk`` rows at a time, so that a graph is never larger than one chunk's."""
        for part, rows in self.pieces(factors, self.settings.chunk):
            name = part.names[0]
            keys, gradients = part.net(part.rows, part.mode)
            raw = part.rows[:, : keys.shape[1]].to(keys)
            step = self.eta[self.number(name)]
            yield Chunk(name, rows, -step * (raw * keys).sum(-1, keepdim=True) * gradients)

    def observed(self, factors: Mapping[str, Factors]) -> list[Counted]:
        """As of any editor, but chunk by chunk: tokens of thousands of edits are not put together."""
        found: dict[Normaliser, Normaliser] = {}
        for part, _ in self.pieces(factors, self.settings.chunk):
            mine = part.net.normaliser
            found.setdefault(mine, Normaliser(part.rows.shape[1], mine.eps).to(self.device)).update(part.rows)
        return [(mine, (seen.count, seen.mean, seen.m2)) for mine, seen in found.items()]

    def values(self, factors: Mapping[str, Factors]) -> dict[str, Tensor]:
        """Wanted changes ``D [N, out]`` of all tokens, by name of weight, without gradients."""
        found: dict[str, list[Tensor]] = {}
        with torch.no_grad():
            for chunk in self.chunks(factors):
                found.setdefault(chunk.name, []).append(chunk.values)
        return {place.name: torch.cat(found[place.name]) for place in self.places if place.name in found}

    def normal(self, name: str, keys: Tensor) -> Normal:
        """The normal equations of a weight's keys ``[N, in]`` with its ridge, solved where the editor is."""
        return Normal(keys, float(ridge_of(self.log_ridge[self.number(name)].detach())), self.device)
