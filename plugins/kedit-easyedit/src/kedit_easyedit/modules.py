"""Module names in EasyEdit's files (``model.layers[27].mlp.down_proj.weight``) as layers and parts of blocks."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from attrs import frozen

Stack: TypeAlias = Literal["encoder", "decoder"]

_NAME = re.compile(
    r"(?P<top>.*?)\b(?:h|layers|layer|block|blocks)[.\[](?P<layer>\d+|\{\})\]?\.(?P<rest>.+?)(?P<leaf>\.weight)?"
)
# ends of names -> part of a block, as methods' settings call it
_ENDS = {
    "mlp_out": ("mlp.c_proj", "mlp.fc_out", "mlp.down_proj", "mlp.dense_4h_to_h", "densereludense.wo", "fc2"),
    "mlp_in": ("mlp.c_fc", "mlp.fc_in", "mlp.dense_h_to_4h", "densereludense.wi", "fc1"),
    "gate": ("mlp.gate_proj", "densereludense.wi_0"),
    "up": ("mlp.up_proj", "densereludense.wi_1"),
    "attn_out": ("attn.c_proj", "attn.out_proj", "attn.o_proj", "attention.dense", "selfattention.o"),
}


@frozen
class Module:
    """A module by its place in the model.

    Attributes:
        layer: number of its block; None where the name has ``{}`` for it.
        part: ``mlp_out``, ``mlp_in``, ``gate``, ``up`` (the two of a gated MLP), or ``attn_out``.
        stack: of an encoder-decoder, which; None for other models.
        weight: whether the name is that of the weight alone, without a bias.
    """

    layer: int | None
    part: str
    stack: Stack | None
    weight: bool


def module(name: Any) -> Module:
    """The module that a name means; ValueError for one that is not understood."""
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    rest = "" if found is None else found["rest"].lower()
    part = next((part for part, ends in _ENDS.items() if any(rest.endswith(end) for end in ends)), None)
    if found is None or part is None:
        raise ValueError(
            f"{name!r} is not the name of a projection that kedit knows; say what is meant with layer and part"
        )
    words = found["top"].split(".")
    # other models have an encoder or decoder further in (model.decoder.layers of OPT, transformer.encoder of GLM)
    stack: Stack | None = "encoder" if words[0] == "encoder" else "decoder" if words[0] == "decoder" else None
    return Module(None if found["layer"] == "{}" else int(found["layer"]), part, stack, found["leaf"] is not None)


def one(names: Any) -> Module:
    """The only module of a list; ValueError for several or none."""
    listed = [names] if isinstance(names, str) else names
    if not isinstance(listed, list) or len(listed) != 1:
        raise ValueError("kedit edits one module with this method; name one")
    found = module(listed[0])
    if found.layer is None:
        raise ValueError("the name must hold the number of a block")
    return found


def layer_and_part(names: Any) -> dict[str, Any]:
    """``layer`` and ``part`` of the one module; ValueError where it is a part that methods with these do not have."""
    found = one(names)
    if found.part in ("gate", "up"):
        raise ValueError("it is one of the two input projections of a gated MLP; kedit edits mlp_out or attn_out there")
    return {"layer": found.layer, "part": found.part}


def parts_and_layers(names: Any) -> dict[str, Any]:
    """``parts``, ``layers`` and, of encoder-decoders, ``decoder_layers`` of a list of modules.

    ValueError when the modules are not all parts in all blocks, which is all that these settings can say.
    """
    if not isinstance(names, list) or not names:
        raise ValueError("it must be a list of module names")
    found = [module(name) for name in names]
    by_block: dict[tuple[Stack | None, int], set[str]] = {}
    for each in found:
        if each.layer is None:
            raise ValueError("each name must hold the number of a block")
        by_block.setdefault((each.stack, each.layer), set()).add(each.part)
    kinds = list(by_block.values())
    if any(kind != kinds[0] for kind in kinds):
        raise ValueError(
            "kedit edits the same parts in all the blocks that are named; these differ from block to block"
        )
    settings: dict[str, Any] = {"parts": _parts(kinds[0])}
    coder = any(stack is not None for stack, _ in by_block)
    settings["layers"] = sorted(layer for stack, layer in by_block if stack in (None, "encoder"))
    if coder:
        settings["decoder_layers"] = sorted(layer for stack, layer in by_block if stack == "decoder")
    return settings


def _parts(kinds: set[str]) -> list[str]:
    ours = kinds - {"gate", "up"}
    if {"gate", "up"} <= kinds:
        ours.add("mlp_in")
    elif "gate" in kinds:
        ours.add("mlp_gate")
    elif "up" in kinds:
        raise ValueError("kedit takes both input projections of a gated MLP (mlp_in) or the gate alone, not the other")
    order: Sequence[str] = ("mlp_in", "mlp_gate", "mlp_out", "attn_out")
    return [part for part in order if part in ours]
