"""What is doubtful about a statistic, said before an edit stands on it: each with its number and the remedy."""

from __future__ import annotations

from pathlib import Path

import torch

from kedit_core.editing import EditContext
from kedit_core.errors import MethodError
from kedit_methods_locate.hparams.spread import Projection
from kedit_methods_locate.stats.source import site_name, width_of
from kedit_methods_locate.stats.statistic import TOKENS_PER_WIDTH, Statistic
from kedit_methods_locate.stats.store import cache_path

_ILL = 1e10  # condition beyond which a float64 solve keeps few digits


def check(context: EditContext, statistic: Statistic, ridge: float = 0.0, *, factorise: bool = True) -> None:
    """Say what is doubtful about a statistic; MethodError when it is of no use for this model.

    Args:
        ridge: what the method adds to its diagonal, as a share of the mean.
        factorise: make its Cholesky factor, which is kept for the edit, and say what stands against solving with it
            (dead units, singular, ill-conditioned). A method that never does, AlphaEdit, is spared both.
    """
    part: Projection = "attn_out" if statistic.record.get("site") == site_name("attn_out") else "mlp_out"
    width = width_of(context.adapter, statistic.layer, part)
    what = "MLP" if part == "mlp_out" else "attention"
    where = f"the statistic of layer {statistic.layer}" + (" (attention)" if part == "attn_out" else "")
    if statistic.width != width:
        raise MethodError(
            f"{where} is of width {statistic.width} and the {what} of width {width}: it is another model's"
        )
    if statistic.count < TOKENS_PER_WIDTH * width:
        context.warn(
            "statistics_few_tokens",
            float(statistic.count),
            f"give a larger corpus (--corpus): at least {TOKENS_PER_WIDTH * width} tokens",
            f"{where} stands on {statistic.count} tokens, {statistic.count / width:.1f} times the {what}'s width",
        )
    if factorise:
        _check_factor(context, statistic, ridge, part, where)
    _check_dtype(context, statistic, where)
    source = dict(statistic.record.get("corpus") or {}).get("source")
    if source == "sampled" and not context.options.get("stats"):
        context.warn(
            "statistics_sampled",
            float(statistic.count),
            "give a text like the model's training data with --corpus",
            f"{where} stands on text that the model wrote itself, as no corpus was given",
        )
    if "weights" not in statistic.record:
        context.warn(
            "statistics_unverified",
            None,
            "make sure that it is of this very model, or collect it with 'kedit stats'",
            f"{where} comes from {statistic.record.get('imported', 'a file')}, which does not tell its weights",
        )


def _check_factor(context: EditContext, statistic: Statistic, ridge: float, part: Projection, where: str) -> None:
    if statistic.dead and not ridge:
        context.warn(
            "statistics_dead_units",
            float(statistic.dead),
            "set mom2_ridge (1e-4, say), or give a more varied corpus (--corpus)",
            f"{where} has {statistic.dead} of {statistic.width} units that the corpus never makes active",
        )
    try:
        factor = statistic.factorised(
            ridge, device=_solving_device(context, statistic.layer, part), cache=context.cache
        )
    except MethodError as error:
        # the last ridge is far more than rounding takes from a sum of products, however few the keys
        raise MethodError(
            f"{where} is indefinite: it cannot be factorised even with a hundredth of its mean diagonal added, which "
            "no sum of k k^T needs; collect it again with 'kedit stats', or give another with --stats"
        ) from error
    if factor.ridge > factor.asked:
        context.warn(
            "statistics_singular",
            factor.ridge,
            "give a larger and more varied corpus (--corpus), or set mom2_ridge",
            f"{where} was singular; {factor.ridge:.0e} of its mean diagonal was added",
        )
    elif factor.condition > _ILL:
        context.warn(
            "statistics_ill_conditioned",
            factor.condition,
            "set mom2_ridge (1e-4, say), or give a more varied corpus (--corpus)",
            f"{where} is nearly singular (condition {factor.condition:.0e}): updates are huge where text has no keys",
        )


def _check_dtype(context: EditContext, statistic: Statistic, where: str) -> None:
    """The model's dtype is no part of a statistic's key, as its weights are compared in float32."""
    told, now = getattr(torch, str(statistic.record.get("dtype")), None), model_dtype(context)
    if not isinstance(told, torch.dtype) or not told.is_floating_point:
        return
    finest = max(torch.finfo(now).eps, torch.finfo(torch.float32).eps)  # sums are kept in float32
    if torch.finfo(told).eps <= finest:
        return
    here = _kept_at(context, statistic)
    name = str(now).removeprefix("torch.")
    context.warn(
        "statistics_narrower_dtype",
        torch.finfo(told).eps,
        f"delete {here}, and it is collected anew"
        if here
        else f"collect it with the model in {name} ('kedit stats --dtype {name}'), and give that with --stats",
        f"{where} was taken from the model in {statistic.record['dtype']}, and the model is in {name} now",
    )


def _kept_at(context: EditContext, statistic: Statistic) -> Path | None:
    """The cache's file of a statistic; None for one that was given, or shipped by a plugin."""
    record = statistic.record
    if context.options.get("stats") or "key" not in record or "weights" not in record:
        return None
    path = cache_path(context.cache, str(record["weights"]), str(record["key"]))
    return path if path.is_file() else None


def model_dtype(context: EditContext) -> torch.dtype:
    """What the model computes in; its quantised weights, if any, are of no dtype to count with."""
    dtypes = (parameter.dtype for parameter in context.model.parameters())
    return next((dtype for dtype in dtypes if dtype.is_floating_point), torch.float32)


def _solving_device(context: EditContext, layer: int, part: Projection) -> torch.device:
    """Where the projection's weight is, and so where methods solve with its statistic."""
    view = context.adapter
    place = view.mlp_out_weight(layer) if part == "mlp_out" else view.attn_out_weight(layer)
    return context.stack.place(place).device
