"""Which parameters are trained: a part of some blocks, as names. Specification: fine-tuning, section 1."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from kedit_core.errors import InputError
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare
from kedit_core.models.storage import storage_of
from kedit_methods_finetune.hparams.ft import FtHyperParams, Part


def places_of(view: ModelView, hparams: FtHyperParams) -> tuple[str, ...]:
    """Names of the trained parameters, block by block, in the order in which the model has them.

    Raises InputError for layers, stacks or parts that the model does not have, and for weights that cannot be trained
    (quantised ones, ones that are not in memory).
    """
    blocks = _blocks(view, hparams)
    if hparams.layers[-1] >= len(blocks):
        raise InputError(
            f"layer {hparams.layers[-1]} is not in this model's {hparams.stack} of {len(blocks)} blocks (0 to "
            f"{len(blocks) - 1}); choose others with -p layers=[N]"
        )
    wanted: dict[int, str] = {}
    for layer in hparams.layers:
        for module in _modules(view, blocks, layer, hparams):
            for leaf, parameter in bare(module).named_parameters():
                if hparams.train_bias or leaf.rpartition(".")[2] != "bias":
                    wanted[id(parameter)] = f"{view.name_of(bare(module))}.{leaf}"
    names = [view.first_name(name) for name in wanted.values()]
    _check(view, names)
    return tuple(names)


def starts_behind(view: ModelView, hparams: FtHyperParams) -> bool:
    """Whether all that training changes lies behind the input of the lowest layer's down-projection, whose output is
    added to the residual stream as it is."""
    return hparams.part == "mlp_out" and view.block_delta_ok


def _blocks(view: ModelView, hparams: FtHyperParams) -> tuple[nn.Module, ...]:
    if hparams.stack == "decoder":
        return view.head_blocks
    if not view.is_encoder_decoder:
        raise InputError("this model has no encoder; leave stack at 'decoder'")
    return tuple(view.block(layer) for layer in range(view.num_layers))


def _modules(
    view: ModelView, blocks: tuple[nn.Module, ...], layer: int, hparams: FtHyperParams
) -> tuple[nn.Module, ...]:
    if hparams.part == "block":
        return (blocks[layer],)
    if view.is_encoder_decoder and hparams.stack == "decoder":
        return tuple(_alike(view, blocks[layer], name) for name in _names(view, hparams.part))
    parts: Mapping[Part, Callable[[], tuple[nn.Module, ...]]] = {
        "mlp_out": lambda: (view.mlp_out(layer),),
        "mlp_in": lambda: view.mlp_in(layer),
        "mlp": lambda: (*view.mlp_in(layer), view.mlp_out(layer)),
        "attn_out": lambda: (view.attn_out(layer),),
        "attn": lambda: (view.attn(layer),),
    }
    return parts[hparams.part]()


def _names(view: ModelView, part: Part) -> tuple[str, ...]:
    """The adapter's names of a part in a block of the encoder, which is the stack that it describes."""
    adapter = view.adapter
    names = {
        "mlp_out": (adapter.mlp_out,),
        "mlp_in": adapter.mlp_in,
        "mlp": (*adapter.mlp_in, adapter.mlp_out),
        "attn_out": (adapter.attn_out,),
        "attn": (adapter.attn,),
    }
    return names[part]


def _alike(view: ModelView, block: nn.Module, template: str) -> nn.Module:
    """The module of a decoder's block that has the same last name as that of an encoder's."""
    leaf = template.rpartition(".")[2]
    found: list[nn.Module] = [each for name, each in block.named_modules() if name.rpartition(".")[2] == leaf]
    if len(found) != 1:
        raise InputError(
            f"a decoder block of this model has {len(found)} parts called {leaf!r}, so it is not clear what to train; "
            "choose part 'mlp_out' or 'block', or stack 'encoder'"
        )
    return found[0]


def _check(view: ModelView, names: list[str]) -> None:
    for name in names:
        if (kind := storage_of(view.model, name).kind) != "plain":
            stored = {"packed": "quantised", "offloaded": "not in memory"}.get(kind, "spread over several processes")
            raise InputError(
                f"{name} is {stored}, so it cannot be fine-tuned; load the model whole and unquantised, or use a "
                "method with low-rank or side-memory edits"
            )
