"""Where the neurons stand: the MLP of the last block before the head, a decoder's in an encoder-decoder."""

from __future__ import annotations

from attrs import frozen
from torch import nn

from kedit_core.errors import InputError, UnsupportedModelError
from kedit_core.forward import ModuleSite
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare, features
from kedit_methods_memory.hparams.t_patcher import Activation

# how configs call the activation inside the MLP; where two are there, the first one is used by the model
_ACTIVATION_NAMES = ("hidden_activation", "activation_function", "dense_act_fn", "hidden_act")
_SPELLINGS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}


@frozen
class LastMlp:
    """Names of the modules around the neurons.

    Attributes:
        read: its input is the query q.
        write: the neurons add to its output.
        norm: what runs on that output, or on its sum with the residual, before the block's own output; or None.
        block: the block.
        simple: a vector added to ``write``'s output is added to the block's output as it is, or goes through ``norm``.
        width: of q and of what is added.
    """

    read: str
    write: str
    norm: str | None
    block: str
    simple: bool
    width: int

    @classmethod
    def of(cls, view: ModelView) -> LastMlp:
        """Of this model. Raises UnsupportedModelError where the parts of a decoder's block cannot be told apart."""
        block = view.head_blocks[-1]
        if view.is_encoder_decoder:
            adapter = view.adapter
            mlp, into = _alike(block, adapter.mlp), _alike(block, adapter.mlp_in[0])
            norm = None if view.norm_after_mlp(0) is None else _alike(block, str(adapter.norm_after_mlp))
        else:
            last = view.num_layers - 1
            mlp, into, norm = view.mlp(last), view.mlp_in(last)[0], view.norm_after_mlp(last)
        names = {module: view.name_of(module) for module in (mlp, into, block)}
        inside = names[into].startswith(f"{names[mlp]}.")
        return cls(
            read=names[mlp] if inside else names[into],
            write=names[mlp],
            norm=None if norm is None else view.name_of(norm),
            block=names[block],
            simple=view.block_delta_ok or norm is not None,
            width=features(bare(into))[1],
        )

    @property
    def places(self) -> tuple[str, ...]:
        """As an operation names them."""
        return (self.write,) if self.read == self.write else (self.read, self.write)

    @property
    def query(self) -> ModuleSite:
        """Where q is read."""
        return ModuleSite(self.read, "input")


def activation_of(view: ModelView, wanted: Activation) -> str:
    """Name of the neurons' activation among :data:`~kedit_methods_memory.t_patcher.neurons.ACTIVATIONS`.

    Raises InputError when it shall be the model's and that is not known.
    """
    if wanted != "model":
        return wanted
    found = next((value for name in _ACTIVATION_NAMES if (value := getattr(view.text_config, name, None))), None)
    if not isinstance(found, str) or found not in _SPELLINGS:
        raise InputError(
            f"this model's activation is {found!r}, which T-Patcher has no neurons for; choose one with "
            "-p activation=relu (or gelu, silu)"
        )
    return _SPELLINGS[found]


def _alike(block: nn.Module, template: str) -> nn.Module:
    """The part of a decoder's block that has the last name of that part in the encoder, which adapters describe."""
    leaf = template.rpartition(".")[2]
    found: list[nn.Module] = [each for name, each in block.named_modules() if name.rpartition(".")[2] == leaf]
    if len(found) != 1:
        raise UnsupportedModelError(
            f"a decoder block of this model has {len(found)} parts called {leaf!r}, so its MLP cannot be told; "
            "T-Patcher needs an encoder-decoder like T5, or a decoder-only model"
        )
    return found[0]
