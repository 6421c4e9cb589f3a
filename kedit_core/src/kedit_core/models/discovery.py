"""Finding an adapter for a model nobody registered: from its module tree and from what short runs show.

Nothing is taken from names: the attention is what mixes positions, the MLP's down-projection is the last linear map
back to the residual stream outside of it, norms are what runs where norms run. Every finding is then checked by adding
a vector in one place and looking where it arrives.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from kedit_core.errors import InputError, KeditError, UnsupportedModelError
from kedit_core.models.adapter import ModelAdapter
from kedit_core.models.anatomy import Anatomy, anatomy_of
from kedit_core.models.parameters import is_projection
from kedit_core.models.probe import Probe, Trace, undisturbed
from kedit_core.models.search import Search
from kedit_core.models.stacks import Stacks, find_stacks
from kedit_core.models.storage import device_of
from kedit_core.models.view import ModelView


def discover(model: nn.Module) -> ModelAdapter:
    """An adapter for this model, found from its structure and verified by forwards on 2 rows of 7 made-up tokens.

    The model, its modes and the global random state are left as they were. About eight short forwards.

    Raises:
        UnsupportedModelError: what kedit needs to know could not be found or did not hold; lists what was looked for.
    """
    search = Search(type(model).__name__)
    stacks = find_stacks(model, search)
    with undisturbed(model):
        embeddings, head = _ends(model, search)
        probe = Probe.of(model, embeddings.weight.shape[0], _device(embeddings))
        try:
            clean = probe.run()
            _check_flow(probe, clean, stacks, search)
            anatomy = anatomy_of(probe, clean, stacks, search)
            adapter = _adapter(model, probe, clean, stacks, anatomy, embeddings, head, search)
            return _with_head(model, clean, stacks, adapter, search)
        except KeditError:
            raise
        except Exception as exc:
            # Whatever a model of unknown structure does on a probe, the user is told what was found so far.
            raise search.failed("a forward on made-up tokens", f"it raised {type(exc).__name__}: {exc}") from exc


def _ends(model: Any, search: Search) -> tuple[Any, nn.Module]:
    """The token embeddings' module as the model names it, and the head."""
    try:
        embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    except (AttributeError, NotImplementedError) as exc:
        raise search.failed("token embeddings and head", "the model does not tell them") from exc
    if not isinstance(getattr(embeddings, "weight", None), Tensor):
        raise search.failed("token embeddings", "get_input_embeddings gives no module with a weight")
    if head is None or not is_projection(head):
        kind = "None" if head is None else f"a {type(head).__name__}"
        raise search.failed("a language-model head", f"get_output_embeddings gives {kind}, not a linear map")
    if any(parameter.is_meta for parameter in model.parameters()) and not hasattr(embeddings, "_hf_hook"):
        raise search.failed("weights", "the model is on the meta device, so no forward can verify its structure")
    return embeddings, head


def _device(embeddings: Any) -> torch.device:
    device = device_of(embeddings, "weight", embeddings.weight)
    return torch.device("cpu") if device.type == "meta" else device


def _check_flow(probe: Probe, clean: Trace, stacks: Stacks, search: Search) -> None:
    """Blocks hand the residual stream from one to the next, and a lone stack reads from left to right."""
    for blocks in stacks.all_blocks:
        for here, following in pairwise(blocks):
            gone_out, gone_in = clean.output(here), clean.input(following)
            if gone_out is None or gone_in is None or not torch.equal(gone_out.to(gone_in.device), gone_in):
                reason = f"the output of {here} ([rows, tokens, hidden]) is not what {following} is given"
                raise search.failed("a residual stream through the blocks", reason)
    if stacks.decoder is None:
        ids = probe.inputs["input_ids"].clone()
        ids[:, -1] = ids[:, 0]
        other = probe.run(input_ids=ids).logits
        if not torch.allclose(clean.logits[:, :-1], other[:, :-1], rtol=1e-2, atol=1e-3):
            raise search.failed(
                "a causal language model", "the logits before the last token change with it: it reads both ways"
            )
    search.found("residual stream", "from block to block")


def _adapter(
    model: nn.Module,
    probe: Probe,
    clean: Trace,
    stacks: Stacks,
    anatomy: Anatomy,
    embeddings: Any,
    head: nn.Module,
    search: Search,
) -> ModelAdapter:
    first_block, last_block = clean.calls[stacks.blocks[0]], clean.calls[stacks.head_blocks[-1]]
    modules = dict(model.named_modules())
    run_embeddings = [
        name
        for name, call in clean.calls.items()
        if call.start < first_block.start and getattr(modules[name], "weight", None) is embeddings.weight
    ]
    if not run_embeddings:
        raise search.failed("token embeddings in front of the blocks", "none was run there")
    head_name = probe.names.get(head, "")
    if head_name not in clean.calls:
        raise search.failed("the head as a module that is run", "its weight is used without it")
    search.found("token embeddings and head", f"{run_embeddings[0]} and {head_name}")
    norms = _between(clean, modules, last_block.end, clean.calls[head_name].start)
    search.found("norms before the head", ", ".join(norms) or "none")
    fields = {key: value for key, value in attrs.asdict(anatomy, recurse=False).items() if key != "hidden_size"}
    adapter = ModelAdapter(
        architectures=(type(model).__name__,),
        block=stacks.template,
        embeddings=run_embeddings[0],
        position_embeddings=_positions(model, clean, modules, anatomy.hidden_size, first_block.start),
        final_norm=tuple(norms),
        lm_head=head_name,
        decoder_block=stacks.decoder_template,
        cache_argument=stacks.cache_argument(modules),
        **fields,
    )
    try:
        ModelView(adapter, model)
    except (UnsupportedModelError, InputError) as exc:
        raise search.failed("the same parts in every block", str(exc)) from exc
    return adapter


def _between(clean: Trace, modules: dict[str, nn.Module], after: int, before: int) -> list[str]:
    """Outermost modules that began after one moment and ended before another, in order; dropouts do nothing."""
    chosen: list[str] = []
    for name, call in clean.calls.items():
        inside = any(name.startswith(f"{outer}.") for outer in chosen)
        if after < call.start and call.end < before and not inside:
            chosen.append(name)
    return [name for name in chosen if not isinstance(modules[name], (nn.Dropout, nn.Identity))]


def _positions(model: Any, clean: Trace, modules: dict[str, nn.Module], hidden_size: int, before: int) -> str | None:
    """A table with a row for each position that is looked up in front of the blocks."""
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:
        return None
    for name, call in clean.calls.items():
        table = modules[name]
        if call.start < before and isinstance(table, nn.Embedding) and table.embedding_dim == hidden_size:
            spare = table.num_embeddings - positions  # a few, since OPT and BART count from an offset
            if 0 <= spare <= 8:
                return name
    return None


def _with_head(model: Any, clean: Trace, stacks: Stacks, adapter: ModelAdapter, search: Search) -> ModelAdapter:
    """The adapter with what is done to the logits, so that ``head`` gives those of the model.

    What config attributes about logits mean is tried out, since their names differ from one architecture to another.
    """
    if (hidden := clean.output(stacks.head_blocks[-1])) is None:
        raise search.failed("the last block's output", f"{stacks.head_blocks[-1]} gives no [rows, tokens, hidden]")
    tries: list[dict[str, Any]] = [{}, {"rescale_hidden": True}]
    config = ModelView(adapter, model).text_config
    for name, value in config.to_dict().items():
        if ("logit" in name or "lm_head" in name) and isinstance(value, (int, float)) and not isinstance(value, bool):
            tries += [{use: name} for use in ("logit_softcap", "logit_multiplier", "logit_divisor")]
    eps = torch.finfo(clean.logits.dtype).eps
    tolerance = max(1e-5, 8 * eps) * float(clean.logits.abs().max())
    for settings in tries:
        candidate = attrs.evolve(adapter, **settings)
        logits = ModelView(candidate, model).head(hidden).to(clean.logits.device)
        if logits.shape == clean.logits.shape and float((logits - clean.logits).abs().max()) <= tolerance:
            return candidate
    raise search.failed(
        "what makes logits of the last block's output",
        f"{', '.join(adapter.final_norm) or 'no norm'} and {adapter.lm_head}, with any factor the config names, give "
        "others than the model does",
    )
