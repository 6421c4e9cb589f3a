"""A KE editor: the network that reads edits, a head for each edited weight, and how a gradient becomes an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kedit_core.errors import InputError
from kedit_core.forward import ForwardTools
from kedit_methods_meta.edited import LowRank
from kedit_methods_meta.factors import Factors
from kedit_methods_meta.hparams.ke import KeEditorSettings
from kedit_methods_meta.ke.condition import Condition, ConditionEncoder
from kedit_methods_meta.ke.head import Head
from kedit_methods_meta.ke.places import editable_places
from kedit_methods_meta.places import Place
from kedit_methods_meta.saved_editor import SavedEditor, check_places, described, made_for

_EMBEDDING = "encoder.embedding.weight"


class KeEditor(SavedEditor):
    """``W <- W + s (A * G + B)`` for each edited weight, from the text of the edit and the gradient G of its loss.

    De Cao et al. 2021 (arXiv 2104.08164), section 4. G is the sum of its tokens' factors ``delta_t x_t^T``, so the
    update has one row for each token and one for the shift, and is never formed:
    ``sum_t (s p_A * delta_t)(c_A * x_t)^T + (s p_B) c_B^T``, with p the rows and c the columns of A and B.

    Args:
        places: the edited weights, in the model's order.
        vocabulary, width: of the embeddings it reads with. padding: see :class:`ConditionEncoder`.
        generator: of the first numbers; None for an editor whose numbers are loaded.
    """

    settings_class = KeEditorSettings
    settings: KeEditorSettings

    def __init__(
        self,
        places: Sequence[Place],
        settings: KeEditorSettings,
        vocabulary: int,
        width: int,
        padding: int | None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(places, settings)
        self.padding = padding
        self.encoder = ConditionEncoder(vocabulary, width, padding, settings, generator)
        self.heads = nn.ModuleList(
            Head(settings.condition_size, settings.head_size, place.shape, settings.max_scale, generator)
            for place in self.places
        )

    @classmethod
    def new(cls, forward: ForwardTools, settings: KeEditorSettings, generator: torch.Generator) -> KeEditor:
        """An untrained editor of a model, which shares nothing with it: embeddings are copied, in float32.

        Raises InputError for weights that the model does not have.
        """
        embeddings = forward.view.embeddings.get_parameter("weight")
        vocabulary, width = embeddings.shape
        padding = forward.boundary.tokenizer.pad_token_id
        padding = None if padding is None or padding >= vocabulary else int(padding)
        made = cls(editable_places(forward, settings), settings, vocabulary, width, padding, generator)
        with torch.no_grad():
            made.encoder.embedding.weight.copy_(embeddings)
        return made.to(forward.device)

    @classmethod
    def of(cls, forward: ForwardTools, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KeEditor:
        """The editor that :meth:`config` and :meth:`tensors` describe, for this model.

        Raises InputError when they are not whole, or name weights that this model does not have.
        """
        settings, listed = described(config, cls.settings_class)
        places, padding = editable_places(forward, settings), config.get("padding")
        check_places(places, listed)
        embeddings = tensors.get(_EMBEDDING)
        if embeddings is None or embeddings.dim() != 2 or not _is_row(padding, len(embeddings)):
            raise InputError(
                "the editor's state has no embeddings, or no padding among them; get the whole folder again"
            )
        vocabulary, width = embeddings.shape
        made = made_for(tensors, lambda: cls(places, settings, vocabulary, width, padding))
        return made.to(forward.device).eval()

    def forward(self, conditions: Sequence[Condition], factors: Mapping[str, Factors]) -> dict[str, LowRank]:
        """The edits of some texts and their gradients' factors; differentiable in all parameters.

        Args:
            conditions: the text of each edit.
            factors: by name of weight; ``edit`` says whose each row is.
        """
        read = self.encoder(conditions)
        found: dict[str, LowRank] = {}
        for place, head in zip(self.places, self.heads, strict=True):
            gates, mine = head(read), factors[place.name]
            edit = mine.edit.to(read.device)
            inputs = gates.mask_column[edit] * mine.inputs.to(read)
            outputs = gates.scale[edit] * gates.mask_row[edit] * mine.gradients.to(read)
            found[place.name] = LowRank(
                torch.cat([inputs, gates.shift_column]),
                torch.cat([outputs, gates.scale * gates.shift_row]),
                torch.cat([edit, torch.arange(len(conditions), device=read.device)]),
            )
        return found

    def config(self) -> dict[str, Any]:
        return {**super().config(), "padding": self.padding}


def _is_row(number: Any, rows: int) -> bool:
    """Whether this may be a padding index: None, or the number of a row."""
    return number is None or (type(number) is int and 0 <= number < rows)
