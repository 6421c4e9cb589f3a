"""What a statistic depends on, as digests: equal keys mean that the numbers would come out the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from typing import Any

from kedit_core.editing import EditContext
from kedit_core.models.storage import first_names

CODE_VERSION = 1
"""Raised when the way a statistic is collected changes its numbers."""


def key_of(fields: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of what a statistic depends on: its name in the cache and in plugins."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_digest(context: EditContext, layer: int | None = None) -> str:
    """Digest of the base's weights that a key of ``layer`` can depend on (all of the model when None), as float32.

    These are all parameters but those of later blocks, of the final norm, of the head, and, in an encoder-decoder, of
    the stack that is not edited. Taken of the base that the stack keeps, whatever patches are on the model.
    """
    whole = hashlib.sha256()
    for name in sorted(_names(context, layer)):
        digest = context.remember(("kedit-methods-locate", "digest", name), partial(_digest, context, name))
        whole.update(f"{name}\0{digest}\n".encode())
    return whole.hexdigest()


def _digest(context: EditContext, name: str) -> str:
    return context.stack.base_digest(name)


def _names(context: EditContext, layer: int | None) -> list[str]:
    view = context.adapter
    names = first_names(context.model)
    if layer is None:
        return names
    later = [view.name_of(view.block(i)) for i in range(layer + 1, view.num_layers)]
    later += [view.name_of(module) for module in (*view.final_norm, view.lm_head)]
    if view.is_encoder_decoder:
        later.append("decoder" if view.edit_stack == "encoder" else "encoder")
    prefixes = tuple(f"{name}." for name in later)
    return [name for name in names if not name.startswith(prefixes)]


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides the ids of a text; the padding and truncation of the last call are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = json.loads(backend.to_str())
        whole.pop("padding", None)
        whole.pop("truncation", None)
    else:
        whole = sorted(tokenizer.get_vocab().items())
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
