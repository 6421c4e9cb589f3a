"""The command ``kedit stats``. Imports no torch until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from kedit_core.cli.common import emit, human_bytes, json_option, note, progress, say, show_table
from kedit_core.cli.outputs import OutputPath, check_file, check_folder, check_replaceable
from kedit_core.errors import InputError

if TYPE_CHECKING:
    from kedit_core.editing import EditContext, EditWarning
    from kedit_methods_locate.hparams.spread import Projection
    from kedit_methods_locate.stats import Source, Statistic


_DIGITS = 4  # of a layer's number; a longer range would fill the memory before any model could refuse it
_ENDING = ".safetensors"
_MARK = "kedit_statistics"  # the metadata key of statistics files


@click.command()
@click.argument("model")
@click.option("--layers", required=True, help="Layers, e.g. 5 or 3-8 or 1,2,7; all are collected in one pass.")
@click.option(
    "--corpus",
    type=click.Path(exists=True, path_type=Path),
    help="Text to take them from: .txt (a document a line), .jsonl (field `text`), or a folder of such.",
)
@click.option("--dataset", help="Take them from the corpus of this registered dataset.")
@click.option("--sample", is_flag=True, help="Take them from text that the model writes itself.")
@click.option("--documents", type=click.IntRange(min=1), default=100_000, show_default=True, help="At most so many.")
@click.option("--tokens", type=click.IntRange(min=1), help="Stop after so many tokens.")
@click.option("--max-len", type=click.IntRange(min=2), help="Tokens of a document that are read.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the choice of documents.")
@click.option("--skip-first-token", is_flag=True, help="Leave the first token of each document out.")
@click.option("--attention", is_flag=True, help="Of the attention's output projection instead of the MLP's.")
@click.option("--dtype", help="Load the model in this dtype (as stored, unless given).")
@click.option("--device", help="Put the model on this device, e.g. cuda:0.")
@click.option("--revision", help="Revision of a model from the Hugging Face Hub.")
@click.option(
    "-o",
    "--output",
    type=OutputPath(path_type=Path),
    help="Also write them to this file (.safetensors), or into this folder under their keys (as plugins ship them).",
)
@json_option
def stats(
    model: str,
    layers: str,
    corpus: Path | None,
    dataset: str | None,
    sample: bool,
    documents: int,
    tokens: int | None,
    max_len: int | None,
    seed: int,
    skip_first_token: bool,
    attention: bool,
    dtype: str | None,
    device: str | None,
    revision: str | None,
    output: Path | None,
    json_to: str | None,
) -> None:
    """Collect the key statistics of MODEL that ROME and its family stand on, and keep them in the cache.

    Without a corpus they come from that of the dataset meant for the model, or from the model's own text. An edit of
    the same model finds them in the cache; --stats FILE gives it others.

    \b
    kedit stats factworld:llama --layers 1
    kedit stats gpt2-xl --layers 13-17 --corpus wikipedia.jsonl -o gpt2-xl.safetensors

    Under torchrun or accelerate launch the processes share the text:

    \b
    torchrun --nproc-per-node 8 --no-python kedit stats gpt2-xl --layers 13-17 --corpus wikipedia.jsonl
    """
    if sum((corpus is not None, dataset is not None, sample)) > 1:
        raise InputError("--corpus, --dataset and --sample are three sources; give one of them")
    if not 0 <= seed < 1 << 63:
        raise InputError(f"the seed is {seed}; give a whole number from 0 to 2**63 - 1")
    numbers = parse_layers(layers)
    if output is not None:
        _check_output(output)
    from kedit_methods_locate.stats.ranks import own_device, processes

    part = {"documents": documents, "tokens": tokens, "max_len": max_len, "seed": seed}
    with processes() as ranks:
        found, warnings = _found(
            model,
            numbers,
            {"dtype": dtype, "device": device or own_device(), "revision": revision},
            {**part, "skip_first_token": skip_first_token},
            (corpus, dataset, sample),
            projection="attn_out" if attention else "mlp_out",
            must_keep=output is None,
        )
    if not ranks.first:
        return  # one process speaks and writes for all
    written = _write(output, list(found.values())) if output is not None else []
    rows = [{**statistic.summary(), "record": dict(statistic.record)} for statistic in found.values()]
    data = {"model": model, "statistics": rows, "files": [str(path) for path in written]}
    emit(json_to, lambda: data, lambda: _show(rows, written))
    for warning in warnings:
        note(f"warning: {warning.message}; {warning.remedy}")


def _found(
    model: str,
    numbers: list[int],
    loading: dict[str, Any],
    part: dict[str, Any],
    source: tuple[Path | None, str | None, bool],
    projection: Projection,
    must_keep: bool,
) -> tuple[dict[int, Statistic], list[EditWarning]]:
    from kedit_core.editing import Editor
    from kedit_methods_locate.stats import Sample

    corpus, dataset, sample = source
    options = {"corpus": corpus} if corpus is not None else {}
    editor = Editor.from_pretrained(model, progress=progress, options=options, **loading)
    context = editor.context()
    if beyond := [layer for layer in numbers if layer >= editor.adapter.num_layers]:
        last = editor.adapter.num_layers - 1
        raise InputError(f"--layers names {beyond[0]}, and {model} has layers 0 to {last}; choose among these")
    text = _source(context, Sample(**part), dataset, sample, projection)
    return _collect(context, numbers, text, must_keep), context.warnings


def parse_layers(text: str) -> list[int]:
    """``"1,3-5"`` -> ``[1, 3, 4, 5]``. Raises InputError for anything else."""
    numbers: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        end = last if dash else first
        if not first.isdecimal() or not end.isdecimal():
            raise InputError(f"--layers {text!r} is no list of layers; write for example 5 or 3-8 or 1,2,7")
        if max(len(first), len(end)) > _DIGITS:
            raise InputError(
                f"--layers goes up to a number of {max(len(first), len(end))} digits, and no model has so many layers; "
                "write for example 5 or 3-8 or 1,2,7"
            )
        if int(end) < int(first):
            raise InputError(f"--layers {text!r} is no list of layers, as {first} is above {end}; write {end}-{first}")
        numbers.update(range(int(first), int(end) + 1))
    return sorted(numbers)


def _check_output(output: Path) -> None:
    """Refuse a place where no statistics can be written (InputError): before the work is done, not after it."""
    if output.is_dir() or not output.suffix:
        folder = output if output.exists() else output.absolute().parent
        check_folder("-o", output, folder)
        return
    if output.suffix != _ENDING:
        raise InputError(
            f"-o {output} must end in {_ENDING}, as the file it will be, or be a folder that is there or has no dot"
        )
    check_file("-o", output)
    check_replaceable("-o", output, _MARK, "statistics file")


def _source(context: EditContext, part: Any, dataset: str | None, sample: bool, projection: Projection) -> Source:
    from kedit_methods_locate.stats import Source, TextCorpus
    from kedit_methods_locate.stats.lookup import usual_corpus

    if sample:
        return Source(sample=part, corpus=None, part=projection)
    if dataset is not None:
        return Source(sample=part, corpus=TextCorpus.of_dataset(context.host.dataset(dataset)), part=projection)
    return Source(sample=part, corpus=usual_corpus(context), part=projection)


def _collect(context: EditContext, layers: list[int], source: Source, must_keep: bool) -> dict[int, Statistic]:
    from kedit_methods_locate.stats import cached, check, collected

    found = cached(context, layers, source)
    missing = [layer for layer in layers if layer not in found]
    if missing:
        found |= collected(context, missing, source, must_keep=must_keep)
    for statistic in found.values():
        check(context, statistic)
    return {layer: found[layer] for layer in layers}


def _write(output: Path, statistics: list[Statistic]) -> list[Path]:
    from kedit_methods_locate.stats import save_statistics

    if output.suffix and not output.is_dir():
        save_statistics(output, statistics)
        return [output]
    paths = [output / f"{statistic.record['key']}.safetensors" for statistic in statistics]
    for path, statistic in zip(paths, statistics, strict=True):
        save_statistics(path, [statistic])
    return paths


def _show(rows: list[dict[str, Any]], written: list[Path]) -> None:
    table = [
        [
            str(row["layer"]),
            str(row["width"]),
            f"{row['tokens']:,}",
            f"{row['tokens_per_width']:.1f}",
            f"{row['mean_squared_key_norm']:.4g}",
            str(row["dead_units"]),
            "-" if row["rank_1e-6"] is None else str(row["rank_1e-6"]),
            row["record"]["key"][:12],
        ]
        for row in rows
    ]
    show_table(["layer", "width", "tokens", "per width", "mean |k|^2", "dead", "rank", "key"], table)
    for path in written:
        say(f"written: {path} ({human_bytes(path.stat().st_size)})")
