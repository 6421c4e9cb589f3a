"""Pack a trained model into the package: half-precision weights, provided that no answer changes (or so many may).

The file holds float16 (or bfloat16) to stay small; ``dtype`` in config.json stays float32, so the model is loaded and
run in float32. The script compares the greedy answers of both, over every wording in the world and every prompt of the
edit cases, and writes nothing if any (or more than --may-differ) differ. Equal input gives equal bytes.

python scripts/pack.py trained/gpt2 gpt2
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import train
from safetensors.torch import save
from torch import Tensor

from kedit_factworld.files import MODELS, READERS, cases_file, model_folder
from kedit_factworld.knowledge import greedy_answers
from kedit_factworld.world import build_world

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}


def all_prompts(cases: Path | None) -> list[str]:
    """Every wording of every fact and two-hop fact, and every prompt of the cases, each once, sorted."""
    its_world = build_world()
    prompts = set[str]()
    for held_out in (False, True):
        prompts.update(statement.prompt for statement in its_world.statements(held_out=held_out))
        prompts.update(statement.prompt for statement in its_world.two_hop_statements(held_out=held_out))
    if cases is not None:
        for line in cases.read_text().splitlines():
            prompts.update(case_prompts(json.loads(line)))
    return sorted(prompts)


def case_prompts(case: Mapping[str, Any]) -> Iterator[str]:
    """All prompts of one edit case."""
    yield case["prompt"]
    yield from case["rephrase_prompts"]
    yield from case["generation_prompts"]
    for probes in (*case["locality"].values(), *case["portability"].values()):
        yield from (probe["prompt"] for probe in probes)


def rounded(model: Any, dtype: torch.dtype) -> Any:
    """A copy whose weights went through ``dtype`` and back."""
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.copy_(parameter.to(dtype))
    return copied


def differing(model: Any, other: Any, vocabulary: Any, prompts: Sequence[str]) -> list[tuple[str, str, str]]:
    """(prompt, answer of the one, answer of the other) wherever they are not the same."""
    answers = (greedy_answers(each, vocabulary, prompts) for each in (model, other))
    return [triple for triple in zip(prompts, *answers, strict=True) if triple[1] != triple[2]]


def write_folder(model: Any, source: Path, dtype: torch.dtype, target: Path) -> None:
    """The Hugging Face folder of the package."""
    target.mkdir(parents=True, exist_ok=True)
    weights: dict[str, Tensor] = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    (target / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    model.config.save_pretrained(target)
    for name in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, target / name)
    report = json.loads((source / train.REPORT).read_text())
    report["parameters"] = sum(p.numel() for p in model.parameters())
    report["stored_dtype"] = str(dtype).removeprefix("torch.")
    (target / train.REPORT).write_text(json.dumps(report, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("source", type=Path, help="folder of the trained model")
    parser.add_argument("kind", choices=MODELS + READERS)
    parser.add_argument("--dtype", choices=DTYPES, default="float16")
    parser.add_argument("--cases", type=Path, default=cases_file(), help="edit cases whose answers must stay too")
    parser.add_argument("--out", type=Path, help="folder to write; the package's own by default")
    parser.add_argument("--may-differ", type=int, default=0, help="answers that may change all the same")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    model, vocabulary = train.load(args.source)
    prompts = all_prompts(args.cases if args.cases.is_file() else None)
    differences = differing(model, rounded(model, DTYPES[args.dtype]), vocabulary, prompts)
    for prompt, before, after in differences:
        print(f"{prompt} |{before} |{after}")
    print(f"{len(differences)} of {len(prompts)} answers differ in {args.dtype}")
    if len(differences) > args.may_differ:
        sys.exit(f"nothing was written: {args.dtype} changes answers; pack with another --dtype")
    write_folder(model, args.source, DTYPES[args.dtype], args.out or model_folder(args.kind))


if __name__ == "__main__":
    main()
