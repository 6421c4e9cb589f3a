"""A KE editor: the network that reads edits, a head for each edited weight, and how a gradient becomes an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from attrs import asdict
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

_EMBEDDING = "encoder.embedding.weight"


class KeEditor(nn.Module):
    """``W <- W + s (A * G + B)`` for each edited weight, from the text of the edit and the gradient G of its loss.

    De Cao et al. 2021 (arXiv 2104.08164), section 4. G is the sum of its tokens' factors ``delta_t x_t^T``, so the
    update has one row for each token and one for the shift, and is never formed:
    ``sum_t (s p_A * delta_t)(c_A * x_t)^T + (s p_B) c_B^T``, with p the rows and c the columns of A and B.

    Args:
        places: the edited weights, in the model's order.
        vocabulary, width: of the embeddings it reads with. padding: see :class:`ConditionEncoder`.
        generator: of the first numbers; None for an editor whose numbers are loaded.
    """

    def __init__(
        self,
        places: Sequence[Place],
        settings: KeEditorSettings,
        vocabulary: int,
        width: int,
        padding: int | None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.places, self.settings, self.padding = tuple(places), settings, padding
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
        try:
            settings = KeEditorSettings.from_dict(config["settings"], "the editor's settings")
            named = [str(place["name"]) for place in config["places"]]
            padding = config["padding"]
            vocabulary, width = tensors[_EMBEDDING].shape
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"the editor's state does not describe a KE editor ({error}); get it again") from error
        places = editable_places(forward, settings)
        if [place.name for place in places] != named:
            raise InputError(
                f"the editor edits {', '.join(named[:3])}, which are not the weights that its settings name in this "
                "model; use the model it was trained for"
            )
        made = cls(places, settings, vocabulary, width, padding)
        own = made.state_dict()
        wrong = sorted({*own} ^ {*tensors}) or [name for name in own if own[name].shape != tensors[name].shape]
        if wrong:
            raise InputError(
                f"the editor's tensors do not go with its settings (see {wrong[0]!r}); get the whole folder again"
            )
        made.load_state_dict(dict(tensors))
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
        """What is needed to make this editor again, beside its tensors and the model: JSON."""
        return {
            "settings": self.settings.to_dict(),
            "places": [asdict(place) for place in self.places],
            "padding": self.padding,
        }

    def tensors(self) -> dict[str, Tensor]:
        """All that is learned, by name."""
        return {name: tensor.detach() for name, tensor in self.state_dict().items()}
