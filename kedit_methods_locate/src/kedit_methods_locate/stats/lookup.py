"""Where an edit's statistics come from.

In this order: what the user gave (``options["stats"]``), the cache, a plugin that ships them, and else they are
collected: from the user's corpus (``options["corpus"]``), from the corpus of the dataset that is meant for this model,
or from text that the model writes itself. Always of the unedited base, with the stack suspended.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from kedit_core.editing import EditContext
from kedit_core.errors import BaseMismatchError, InputError
from kedit_methods_locate.hparams import LocateHyperParams
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats.checks import check, model_dtype
from kedit_methods_locate.stats.collect import collect
from kedit_methods_locate.stats.corpus import Corpus, FileCorpus, TextCorpus
from kedit_methods_locate.stats.fingerprint import key_of, weights_digest
from kedit_methods_locate.stats.kept import REMEDY, KeptPartial, keep, read_kept, refusal
from kedit_methods_locate.stats.predecessors import resource_name
from kedit_methods_locate.stats.ranks import Ranks
from kedit_methods_locate.stats.source import Sample, Source, site_name, width_of
from kedit_methods_locate.stats.statistic import TOKENS_PER_WIDTH, Statistic
from kedit_methods_locate.stats.store import ROLE, cache_path, first_of, load_statistics


def statistics_for(
    context: EditContext,
    layers: Sequence[int],
    hparams: LocateHyperParams,
    part: Projection = "mlp_out",
    *,
    factorise: bool = True,
) -> Mapping[int, Statistic]:
    """Statistics of the unedited model for ``layers``, of the inputs of ``part``: found, or collected in one pass.

    What is doubtful about them is said through ``context.warn``; their digests go to the patch's manifest.

    Args:
        factorise: whether they will be solved with; False for a method that does not (see :func:`check`).

    Raises:
        InputError: the file or corpus given cannot be used.
        BaseMismatchError: the file given is of other weights.
        MethodError: they are zero, not finite, or of the wrong size.
    """
    given = context.options.get("stats")
    corpus = context.options.get("corpus")
    sample = Sample.of(hparams)
    key = ("kedit-methods-locate", ROLE, part, str(given), str(corpus), sample)
    missing = [layer for layer in layers if (*key, layer) not in context.memo]
    if missing:
        found = _given(context, Path(given), missing, part) if given else _found(context, missing, sample, part)
        for layer in missing:
            context.memo[(*key, layer)] = found[layer]
    statistics: dict[int, Statistic] = {layer: context.memo[(*key, layer)] for layer in layers}
    for layer, statistic in statistics.items():
        check(context, statistic, hparams.mom2_ridge, factorise=factorise)
        context.note_resource(resource_name(layer, part), statistic.digest)
    return statistics


def whereabouts(context: EditContext, layer: int, hparams: LocateHyperParams, part: Projection = "mlp_out") -> str:
    """Where the statistic of a layer would come from, in words; nothing is collected."""
    if given := context.options.get("stats"):
        return f"from {given}"
    source = Source(sample=Sample.of(hparams), corpus=usual_corpus(context), part=part)
    if cached(context, [layer], source):
        return "at hand"
    if source.corpus is not None:
        return f"to be collected from {source.corpus.identity['source']} ({len(source.corpus)} documents)"
    if _of_any_corpus(context, layer, source.sample, part) is not None:
        return "at hand, from another corpus"
    wanted = TOKENS_PER_WIDTH * width_of(context.adapter, layer, part)
    return f"to be collected from {wanted} tokens that the model writes itself; --corpus FILE gives it better text"


def _given(context: EditContext, path: Path, layers: Sequence[int], part: Projection) -> dict[int, Statistic]:
    statistics = load_statistics(path)
    found: dict[int, Statistic] = {}
    for layer in layers:
        statistic = first_of(statistics, layer, site_name(part))
        if statistic is None:
            site, more = site_name(part), "" if part == "mlp_out" else " --attention"
            known = ", ".join(str(s.layer) for s in statistics if first_of([s], s.layer, site)) or "none"
            raise InputError(
                f"{path} has no statistic of layer {layer}, {site} (it has {known}); run 'kedit stats{more}' for it"
            )
        weights = statistic.record.get("weights")
        if weights is not None and weights != weights_digest(context, layer):
            raise BaseMismatchError(
                f"the statistic of layer {layer} in {path} is of other weights than this model's; collect it with "
                "'kedit stats' for this model"
            )
        found[layer] = statistic
    return found


def _found(context: EditContext, layers: Sequence[int], sample: Sample, part: Projection) -> dict[int, Statistic]:
    source = Source(sample=sample, corpus=usual_corpus(context), part=part)
    found = cached(context, layers, source)
    if source.corpus is None and "corpus" not in context.options:
        for layer in (layer for layer in layers if layer not in found):
            if (statistic := _of_any_corpus(context, layer, sample, part)) is not None:
                found[layer] = statistic
                context.warn(
                    "statistics_of_another_corpus",
                    float(statistic.count),
                    "give the corpus (--corpus) or the statistic (--stats) to be independent of the cache",
                    f"no corpus was given, so the cached statistic of layer {layer} was taken: {_source_of(statistic)}",
                )
    missing = [layer for layer in layers if layer not in found]
    return found | (collected(context, missing, source) if missing else {})


def _source_of(statistic: Statistic) -> str:
    return str(dict(statistic.record.get("corpus") or {}).get("source", "an unknown text"))


def cached(context: EditContext, layers: Sequence[int], source: Source) -> dict[int, Statistic]:
    """Statistics of exactly this source, in the cache or shipped by a plugin; layers not found are left out.

    A file that cannot be used is logged and counts as not found.
    """
    found: dict[int, Statistic] = {}
    for layer in layers:
        key = key_of(fields := source.fields(context, layer))
        for path in (cache_file(context, fields), context.find_resource(ROLE, key)):
            statistics = read_kept(path) if path is not None else []
            match = next((s for s in statistics if s.layer == layer and s.record.get("key") == key), None)
            if match is not None:
                found[layer] = match
                break
    return found


def collected(
    context: EditContext, layers: Sequence[int], source: Source, *, must_keep: bool = False
) -> dict[int, Statistic]:
    """Collect in one pass and put in the cache; an interrupted pass over the same source is taken up again.

    Where the cache cannot be written to, nothing is kept, and this is said (warning ``statistics_not_kept``).

    Args:
        must_keep: for a caller who wants them in the cache and nowhere else.

    Raises:
        InputError: ``must_keep``, and the cache cannot be written to; before the pass. Or the source holds no token.
    """
    started = time.monotonic()
    fields = {layer: source.fields(context, layer) for layer in layers}
    keys = {layer: key_of(each) for layer, each in fields.items()}
    files = {layer: cache_file(context, each) for layer, each in fields.items()}
    for path in files.values() if must_keep else ():
        if (reason := refusal(path)) is not None:
            raise InputError(
                f"the statistics could not be kept in {path.parent} ({reason}); {REMEDY}, or name a file with -o"
            )
    whole = key_of({str(layer): key for layer, key in keys.items()})
    ranks = Ranks.now()
    kept = KeptPartial(path=context.cache / ROLE / f"partial-{whole[:32]}{ranks.suffix}.safetensors", key=whole)
    with context.stack.suspended():
        sums = collect(
            context.forward,
            layers,
            source.rows(context),
            skip_first_token=source.sample.skip_first_token,
            max_tokens=source.sample.tokens,
            partial=kept if refusal(kept.path) is None else None,
            part=source.part,
            ranks=ranks,
            show=context.progress,
        )
    found = {}
    for layer in layers:
        record = {
            **fields[layer],
            "key": keys[layer],
            "documents_read": sums.documents,
            "seconds": round(time.monotonic() - started, 3),
            "dtype": str(model_dtype(context)).removeprefix("torch."),
        }
        found[layer] = Statistic.from_sum(layer, sums.totals[layer], sums.count, record)
        if ranks.first:
            found[layer] = found[layer].summarised()
    if ranks.first:
        keep(context, {files[layer]: statistic for layer, statistic in found.items()})
    ranks.wait()
    with suppress(OSError):
        kept.path.unlink()
    # reported apart from the edit's own time: it is done once for a model
    context.records.setdefault("setup_seconds", []).append(time.monotonic() - started)
    return found


def cache_file(context: EditContext, fields: Mapping[str, Any]) -> Path:
    """Where a statistic is cached: a folder for the weights, a file for the key."""
    return cache_path(context.cache, str(fields["weights"]), key_of(fields))


def _of_any_corpus(context: EditContext, layer: int, sample: Sample, part: Projection) -> Statistic | None:
    """The cached statistic of these weights that stands on most tokens: somebody collected it with ``kedit stats``."""
    wanted = Source(sample=sample, part=part).fields(context, layer)
    same = ("code", "layer", "site", "weights", "tokenizer", "skip_first_token")
    best: Statistic | None = None
    for path in sorted(cache_file(context, wanted).parent.glob("*.safetensors")):
        for statistic in read_kept(path):
            fits = all(statistic.record.get(name) == wanted[name] for name in same)
            if fits and (best is None or statistic.count > best.count):
                best = statistic
    return best


def usual_corpus(context: EditContext) -> Corpus | None:
    """The user's corpus, else that of the dataset meant for this model, else None."""
    given = context.options.get("corpus")
    if given is not None:
        return FileCorpus(Path(given))
    for info in context.host.datasets():
        if info.corpus is not None and context.model_name is not None and context.model_name in info.models:
            return context.remember(("kedit-methods-locate", "corpus", info.name), partial(TextCorpus.of_dataset, info))
    return None
