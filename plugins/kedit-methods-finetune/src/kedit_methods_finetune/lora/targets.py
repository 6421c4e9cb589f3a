"""Which projections of a model get an adapter: found by what they are in a block, or by their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from attrs import frozen
from torch import nn

from kedit_core.errors import InputError
from kedit_core.models import ModelView
from kedit_core.models.parameters import bare, features, is_projection
from kedit_core.models.storage import storage_of
from kedit_methods_finetune.hparams.lora import AdapterHyperParams

# what implementations call the projections inside of an attention
_NAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "q": ("q_proj", "q", "query", "q_lin", "wq", "to_q"),
        "k": ("k_proj", "k", "key", "k_lin", "wk", "to_k"),
        "v": ("v_proj", "v", "value", "v_lin", "wv", "to_v"),
    }
)
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv", "W_pack", "qkv", "in_proj")
_ROLES = (*_NAMES, "attn_out", "mlp_in", "mlp_out")


@frozen(eq=False)
class Target:
    """A projection that gets an adapter.

    Attributes:
        place: name of its weight, as patches use it.
        module: the projection itself, also where somebody has put a layer around it.
        out, width: sizes of its weight, ``[out, in]``.
    """

    place: str
    module: nn.Module
    out: int
    width: int


def find_targets(view: ModelView, hparams: AdapterHyperParams) -> tuple[Target, ...]:
    """The projections named by ``targets`` in the blocks ``layers``, in the order of the model, each once.

    Blocks are those of the edited stack (an encoder-decoder's encoder); with ``layers=()`` a name that is no role is
    also looked for in the decoder's blocks.

    Raises:
        InputError: a block the model does not have, a target that is not found, or a weight shared with another module.
    """
    if hparams.layers and hparams.layers[-1] >= view.num_layers:
        raise InputError(
            f"layers has block {hparams.layers[-1]}, and this model has blocks 0 to {view.num_layers - 1}; choose "
            "others with -p layers=[...], or [] for all"
        )
    chosen: set[nn.Module] = set()
    for target in hparams.targets:
        chosen |= _by_role(view, hparams.layers, target) if target in _ROLES else _by_name(view, hparams.layers, target)
    found = []
    for name, module in view.model.named_modules():
        if module in chosen:
            place = view.first_name(f"{name}.weight")
            if shared := view.aliases(place):
                raise InputError(f"{place} is also {shared[0]}, so an adapter cannot be for one of them; target others")
            if storage_of(view.model, place).kind not in ("plain", "packed"):
                raise InputError(
                    f"{place} is offloaded, so no adapter can be trained beside it; load the model in memory"
                )
            out, width = features(module)
            found.append(Target(place, module, out, width))
    return tuple(found)


def _by_role(view: ModelView, layers: Sequence[int], role: str) -> set[nn.Module]:
    found: set[nn.Module] = set()
    for layer in layers or range(view.num_layers):
        if role == "mlp_in":
            found |= {bare(module) for module in view.mlp_in(layer)}
        elif role == "mlp_out":
            found.add(bare(view.mlp_out(layer)))
        elif role == "attn_out":
            found.add(bare(view.attn_out(layer)))
        else:
            found.add(_attention_input(view, layer, role))
    return found


def _attention_input(view: ModelView, layer: int, role: str) -> nn.Module:
    """The projection that computes queries, keys or values: by its name, else the only one there is."""
    inside = _projections(view.attn(layer))
    inside = {name: module for name, module in inside.items() if module is not bare(view.attn_out(layer))}
    for names in (_NAMES[role], _FUSED):
        for name, module in inside.items():
            if name.rpartition(".")[2] in names:
                return module
    if len(inside) == 1:
        return next(iter(inside.values()))
    path = view.name_of(view.attn(layer))
    raise InputError(
        f"targets has {role!r}, and no projection in {path} is known to compute it (there are "
        f"{', '.join(inside) or 'none'}); name modules instead, with -p targets=[NAME,...]"
    )


def _by_name(view: ModelView, layers: Sequence[int], ending: str) -> set[nn.Module]:
    """Projections whose dotted name ends so, in whole parts."""
    blocks = [view.block(layer) for layer in layers or range(view.num_layers)]
    if not layers and view.is_encoder_decoder:
        blocks += view.head_blocks
    found, seen = set(), []
    for block in blocks:
        path = view.name_of(block)
        for name, module in _projections(block).items():
            seen.append(name)
            if f".{path}.{name}".endswith(f".{ending}"):
                found.add(module)
    if not found:
        raise InputError(
            f"targets has {ending!r}, which is neither one of {', '.join(_ROLES)} nor the end of a projection's name "
            f"in these blocks; names there are {', '.join(dict.fromkeys(seen))}"
        )
    return found


def _projections(inside: nn.Module) -> dict[str, nn.Module]:
    """Projections by name; one that peft has put a layer around has the name of that layer, and its parts are none."""
    found: dict[str, nn.Module] = {}
    for name, module in inside.named_modules():
        if any(name.startswith(f"{outer}.") for outer in found):
            continue
        if is_projection(bare(module)):
            found[name] = bare(module)
    return found
