"""First stage: train a tiny GPT-2 or Llama on FactWorld from scratch, or train a saved one further.

python scripts/train.py gpt2 --steps 4129 --out trained/gpt2
python scripts/train.py gpt2 --steps 1369 --lr 0.001 --resume --out trained/gpt2
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rows import Row, packed_rows
from torch import Tensor

from kedit_factworld import corpus, tokenizer, world
from kedit_factworld.knowledge import exact_match

KINDS = ("gpt2", "llama")
LENGTH = 128
WIDTH = 192
LAYERS = 6
HEADS = 4
WARMUP_STEPS = 200
DECAY_FRACTION = 0.25
OTHER_WEIGHT = 0.25  # of the ids that are no part of an object, in the loss
REPORT = "training_report.json"


def new_model(kind: str, vocabulary: Any) -> Any:
    """A randomly initialised model of the kind, for the tokenizer ``vocabulary``."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    ids = {
        "vocab_size": len(vocabulary),
        "bos_token_id": vocabulary.bos_token_id,
        "eos_token_id": vocabulary.eos_token_id,
        "pad_token_id": vocabulary.pad_token_id,
        "tie_word_embeddings": False,
    }
    if kind == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=WIDTH,
                intermediate_size=512,
                num_hidden_layers=LAYERS,
                num_attention_heads=HEADS,
                num_key_value_heads=HEADS,
                max_position_embeddings=LENGTH,
                **ids,
            )
        )
    model = GPT2LMHeadModel(
        GPT2Config(
            n_positions=LENGTH,
            n_embd=WIDTH,
            n_layer=LAYERS,
            n_head=HEADS,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            activation_function="gelu_pytorch_tanh",
            **ids,
        )
    )
    model.transformer.wpe.weight.data *= 0.1  # let the words, not the positions, speak first
    return model


def load(folder: Path) -> tuple[Any, Any]:
    """The saved model and tokenizer of a folder."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    return AutoModelForCausalLM.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)


def optimizer_for(model: Any, peak_rate: float) -> torch.optim.AdamW:
    """AdamW with weight decay on the matrices only."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.98), fused=True)


def take_step(model: Any, optimizer: torch.optim.AdamW, rate: float, loss: Tensor) -> float:
    """One optimizer step at a learning rate; returns the loss."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def weighted_loss(logits: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy of each next id; logits [batch, seq, vocab], ids and weights [batch, seq]."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    shares = weights[:, 1:].flatten()
    return (losses * shares).sum() / shares.sum()


def object_weights(rows: Sequence[Row]) -> Tensor:
    """Objects count in full, the predictable rest a little; [batch, seq]."""
    return torch.where(torch.tensor([row.is_object for row in rows]), 1.0, OTHER_WEIGHT)


def batches(its_world: world.World, vocabulary: Any, batch_size: int, first_pass: int) -> Iterator[list[Row]]:
    """Batches of packed rows, pass after pass, without end."""
    for index in itertools.count(first_pass):
        rows = packed_rows(its_world, index, vocabulary, LENGTH)
        for start in range(0, len(rows) - batch_size + 1, batch_size):
            yield rows[start : start + batch_size]


def learning_rate(step: int, total: int) -> float:
    """Fraction of the peak rate: warm up, stay, and fall linearly to zero over the last part of the steps."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (total - step) / (DECAY_FRACTION * total))


def train(model: Any, vocabulary: Any, args: argparse.Namespace, earlier_legs: int) -> dict[str, Any]:
    """Train in place; returns the leg for the report. A further leg reads passes not seen before."""
    its_world = world.build_world()
    optimizer = optimizer_for(model, args.lr)
    start, seen, losses = time.time(), 0, []
    stream = batches(its_world, vocabulary, args.batch_size, 1000 * earlier_legs)
    model.train()
    for step, rows in zip(range(args.steps), stream, strict=False):
        ids = torch.tensor([row.ids for row in rows])
        loss = weighted_loss(model(input_ids=ids).logits, ids, object_weights(rows))
        losses.append(take_step(model, optimizer, args.lr * learning_rate(step, args.steps), loss))
        seen += ids.numel()
        if step % 100 == 99:
            seconds = time.time() - start
            mean = sum(losses[-100:]) / 100
            print(
                f"step {step + 1}/{args.steps} loss {mean:.3f} {seen / seconds:.0f} ids/s {seconds:.0f} s", flush=True
            )
        if step % 500 == 499:
            print("   ", exact_match(model, vocabulary, its_world, limit=200), flush=True)
            model.train()
    seconds = max(1, round(time.time() - start))
    return {
        "steps": args.steps,
        "batch_size": args.batch_size,
        "peak_lr": args.lr,
        "ids_seen": seen,
        "seconds": seconds,
        "ids_per_second": round(seen / seconds),
        "final_loss": round(sum(losses[-50:]) / max(1, len(losses[-50:])), 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--out", type=Path, required=True, help="folder to write (and to read, with --resume)")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, default=4, help="rows in a step")
    parser.add_argument("--lr", type=float, default=1.5e-3, help="peak learning rate")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--resume", action="store_true", help="train the saved model further, with a fresh optimizer")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    torch.manual_seed(world.SEED)
    report: dict[str, Any] = {"kind": args.kind, "legs": []}
    if args.resume:
        report = json.loads((args.out / REPORT).read_text())
        model, vocabulary = load(args.out)
    else:
        vocabulary = tokenizer.train_tokenizer(corpus.corpus())
        model = new_model(args.kind, vocabulary)
    report["legs"].append(train(model, vocabulary, args, len(report["legs"])))
    model.eval().save_pretrained(args.out)
    tokenizer.save_tokenizer(vocabulary, args.out)
    write_report(args.out, report, model, vocabulary)


def write_report(folder: Path, report: dict[str, Any], model: Any, vocabulary: Any) -> None:
    """Measure the model and write the report beside it."""
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["exact_match"] = exact_match(model, vocabulary, world.build_world())
    (folder / REPORT).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
