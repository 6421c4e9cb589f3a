"""What servers cannot do with an adapter, as sentences for its user. Facts: their documentation, November 2026."""

from __future__ import annotations

from kedit_peft.adapter import VLLM_RANKS, Adapter, AdapterWeight

# vLLM runs these and puts no LoRA on them (its table of supported models)
NO_LORA_IN_VLLM = ("GPT2LMHeadModel", "GPTJForCausalLM", "GPTNeoXForCausalLM")
_VLLM_DEFAULT_RANK = 16
_HEADS = ("lm_head", "embed_out")


def notes_for(adapter: Adapter, architecture: str, base_name: str | None) -> list[str]:
    """The notes, most important first."""
    notes = []
    if architecture in NO_LORA_IN_VLLM:
        notes.append(f"vLLM puts no LoRA on {architecture}; serve a merged folder there (kedit patch apply)")
    elif adapter.rank > VLLM_RANKS[-1]:
        notes.append(f"vLLM takes ranks up to {VLLM_RANKS[-1]}, and this is {adapter.rank}; truncate with max_rank")
    elif adapter.rank not in VLLM_RANKS or adapter.rank > _VLLM_DEFAULT_RANK:
        allowed = next(rank for rank in VLLM_RANKS if rank >= adapter.rank)
        notes.append(f"start vLLM with --max-lora-rank {allowed}")
    if wide := [weight for weight in adapter.weights if _larger(weight)]:
        notes.append(
            f"its factors of {wide[0].place} are larger than the weight; serve a merged folder, or truncate with "
            "max_rank"
        )
    if heads := [weight.module for weight in adapter.weights if weight.module.rpartition(".")[2] in _HEADS]:
        notes.append(f"it changes the output head {heads[0]}, which not every server takes an adapter for")
    notes.append(
        "Text Generation Inference leaves out a kind of layer that any block has no adapter for; do not serve it there"
    )
    if base_name is None:
        notes.append(
            "the patch records no name of its base, so base_model_name_or_path is null; "
            "give base_name (-p base_name=NAME)"
        )
    elif ":" in base_name:
        notes.append(
            f"base_model_name_or_path is {base_name!r}, a name that only kedit knows; "
            "give base_name (-p base_name=NAME)"
        )
    return notes


def _larger(weight: AdapterWeight) -> bool:
    left, right = weight.factors.left, weight.factors.right
    return left.numel() + right.numel() > left.shape[0] * right.shape[1]
