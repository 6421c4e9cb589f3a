"""What a codebook of GRACE and a database of MELO add to every generated token, by the number of entries.

A GPT-2 of random weights writes one answer at a time, with a cache, the bare model and each way in turns; the least
time of each counts. Entries are drawn at random with the length of real states; one of them is the prompt's own where
the name says `inside`, so that a value stands there, or a block is added. `reading` is the prompt and the first token,
where the prompt is looked up; `token` is each further one.

- ``grace outside``, ``grace inside``: as by default, asked once for a prompt (``replace_last``).
- ``grace everywhere``: inside, with ``replace_all``.
- ``grace asked anew``: looked up for every token that is written, as EasyEdit's code does.
- ``melo outside``, ``melo inside``: one point a cluster, a block of rank 2 on the MLPs of two layers.

    python benchmarks/codebook_latency.py [--layers 12] [--width 768] [--entries 1 100 1000 10000] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from gpt2_shape import Shape
from torch import Tensor

from kedit_core import Editor
from kedit_core.forward.generation import generate_ids
from kedit_core.patches import EditPatch, ModuleOperation
from kedit_core.testing.tiny import tiny_tokenizer
from kedit_methods_memory.hparams.melo import MeloHyperParams
from kedit_methods_memory.melo.method import Places
from kedit_methods_memory.projections import projection
from kedit_methods_memory.reading import read

RANK = 2
BARE = "bare model"


def entries(own: Tensor, count: int, inside: bool) -> Tensor:
    """``[count, width]``: drawn with the length of the prompt's own state, which is the last of them where inside."""
    drawn = torch.randn(count, len(own), generator=torch.Generator().manual_seed(count))
    found: Tensor = drawn * (own.norm() / drawn.norm(dim=1, keepdim=True))
    if inside:
        found[-1] = own
    return found


def grace(editor: Editor, prompt: list[int], layer: int, count: int, inside: bool, **config: Any) -> EditPatch:
    """A codebook of so many entries."""
    tools = editor.context().forward
    place = projection(tools.view, layer, "mlp_out")
    seen = read(tools, place, [prompt])
    tensors = {
        "keys": entries(seen.inputs[0].float(), count, inside),
        "values": seen.outputs.float().repeat(count, 1),
        "radii": torch.full((count,), 1e-2),
    }
    settings = {"replacement": "replace_last", "token": "last_prompt", "requery": False, **config}
    return editor.context().new_patch([ModuleOperation((place.name,), "grace.codebook", 1, settings, tensors)], [])


def melo(editor: Editor, prompt: list[int], layer: int, count: int, inside: bool) -> EditPatch:
    """A database of so many clusters, each with one point, and one block: a row gathers no more than its own."""
    tools = editor.context().forward
    places = Places.of(tools.view, MeloHyperParams(scope_layer=layer, layers=(layer + 1, layer + 2)))
    centres = entries(read(tools, places.scope, [prompt]).outputs[0].float(), count, inside)
    tensors = {"centres": centres, "radii": torch.full((count,), 1e-2), "points": centres.clone()}
    tensors |= {"point_cluster": torch.arange(count), "point_block": torch.zeros(count, dtype=torch.int64)}
    for i, target in enumerate(places.targets):
        tensors[f"a.{i}"] = torch.zeros(1, target.width, RANK)
        tensors[f"b.{i}"] = torch.zeros(1, RANK, target.out)
    names = (places.scope.name, *(target.name for target in places.targets))
    return editor.context().new_patch([ModuleOperation(names, "melo.blocks", 1, {"factor": 1.0}, tensors)], [])


def ways(editor: Editor, prompt: list[int], layer: int, count: int) -> Iterator[tuple[str, EditPatch]]:
    """The patches that are compared."""
    yield "grace outside", grace(editor, prompt, layer, count, False)
    yield "grace inside", grace(editor, prompt, layer, count, True)
    yield "grace everywhere", grace(editor, prompt, layer, count, True, replacement="replace_all")
    yield "grace asked anew", grace(editor, prompt, layer, count, False, requery=True)
    yield "melo outside", melo(editor, prompt, layer, count, False)
    yield "melo inside", melo(editor, prompt, layer, count, True)


def seconds(editor: Editor, prompt: list[int], tokens: int) -> float:
    """Wall time of one answer, through what is on the model."""
    tools = editor.context().forward
    start = time.perf_counter()
    generate_ids(tools.model, tools.view, tools.boundary, [prompt], tokens, scope=tools.scope, ignore_eos=True)
    return time.perf_counter() - start


def measure(editor: Editor, prompt: list[int], layer: int, count: int, options: Any) -> list[dict[str, Any]]:
    """A row for each way, in milliseconds; the bare model's times are those of the same turns."""
    patches: dict[str, EditPatch | None] = {BARE: None, **dict(ways(editor, prompt, layer, count))}
    least: dict[tuple[str, int], float] = {}
    lengths = (1, 1 + options.tokens)
    for _ in range(options.repeats):
        for name, patch in patches.items():
            if patch is not None:
                editor.apply(patch)
            for length in (1, *lengths):  # reading is the shorter of the two, so it is taken twice
                taken = seconds(editor, prompt, length)
                least[name, length] = min(taken, least.get((name, length), taken))
            if patch is not None:
                editor.remove(patch)
    rows = []
    for name in patches:
        reading, token = least[name, 1], (least[name, lengths[1]] - least[name, 1]) / options.tokens
        rows.append({"entries": count, "way": name, "reading_ms": reading * 1e3, "token_ms": token * 1e3})
    bare = rows[0]
    for row in rows:
        row |= {f"{part}_over_bare": row[f"{part}_ms"] / bare[f"{part}_ms"] for part in ("reading", "token")}
    return rows


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Latency that codebooks add to generation.")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--entries", type=int, nargs="+", default=[1, 100, 1_000, 10_000])
    parser.add_argument("--prompt", type=int, default=24, help="tokens of the prompt")
    parser.add_argument("--tokens", type=int, default=16, help="tokens after the first one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model = Shape(layers=options.layers, width=options.width).model()
    editor = Editor(model, tiny_tokenizer("byte_bpe"), "grace", {"layer": 0})
    layer = max(round(0.7 * options.layers) - 1, 0)
    prompt = torch.randint(10, 50_000, (options.prompt,), generator=torch.Generator().manual_seed(0)).tolist()
    seconds(editor, prompt, 2)  # the model's first pass sets things up
    rows = [row for count in options.entries for row in measure(editor, prompt, layer, count, options)]
    print(f"{'entries':>8} {'way':<18} {'reading ms':>11} {'ratio':>7} {'token ms':>9} {'ratio':>7}")
    for row in rows:
        print(
            f"{row['entries']:8,} {row['way']:<18} {row['reading_ms']:11.2f} {row['reading_over_bare']:6.3f}x "
            f"{row['token_ms']:9.2f} {row['token_over_bare']:6.3f}x"
        )
    if options.json:
        report = {"threads": options.threads, "layers": options.layers, "width": options.width, "rows": rows}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
