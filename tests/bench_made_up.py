"""A made-up bench with everything in it that a report and a comparison must cope with.

Scores follow from a seed; results are made by the same functions as real ones, so that values, parts and tags agree.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Mapping, Sequence
from typing import Any

from kedit_core.contract import MetricResult
from kedit_core.evaluation import Evaluation, Tag, metric_result
from kedit_core.plugins import Catalogue, Host

METHODS = {"rome": 0.92, "memit": 0.8, "ft_l": 0.45, "grace": 0.97, "alphaedit": 0.86}
PROTOCOLS = {"gen_free": ("gen_free", "EM", 0.0), "tf_token": ("tf_token", "argmax", 0.12)}
HOSTILE = (
    '</script><script>alert("1")</script>',
    "<img src=x onerror=alert(1)> & \"quotes\" 'single' `back`",
    "\u202eright to left\u202c שלום עולם مرحبا",
    "line one\nline two\ttab \x00 null \ud800 half",
    "日本の首都は",
    "long " * 2000,
)
SCENARIOS: tuple[dict[str, Any], ...] = (
    {"kind": "single", "size": None, "batch_size": None, "checkpoints": []},
    {"kind": "batch", "size": 30, "batch_size": 30, "checkpoints": []},
    {"kind": "sequential", "size": 100, "batch_size": 1, "checkpoints": [1, 10, 50, 100]},
)

ABILITY = {
    "harness": "lm_eval 0.4.13",
    "smoke": False,
    "limit": None,
    "tasks": {
        "lambada_openai": {
            "shots": 0,
            "documents": 5153,
            "version": 1.0,
            "metrics": {
                "acc": {
                    "value": 0.51, "stderr": 0.01, "unedited": 0.53, "unedited_stderr": 0.01, "delta": -0.02
                },
            },
        }
    },
}  # fmt: skip


def made_up_bench(
    *,
    models: Sequence[str] = ("factworld:llama", "factworld:gpt2"),
    methods: Mapping[str, float] = METHODS,
    datasets: Sequence[str] = ("factworld",),
    scenarios: Sequence[Mapping[str, Any]] = SCENARIOS,
    cases: int = 40,
    seed: int = 0,
    ways: Mapping[str, str] | None = None,
    failing: Sequence[str] = ("ft_l",),
) -> dict[str, Any]:
    """The content of a ``bench.json``. Methods in ``failing`` fail on the last model in batches."""
    cells = []
    for model in models:
        for dataset in datasets:
            for scenario in scenarios:
                for method, skill in methods.items():
                    fails = method in failing and model == models[-1] and scenario["kind"] == "batch"
                    way = (ways or {}).get(method, "merged")
                    maker = _Maker(random.Random(f"{seed} {model} {dataset} {scenario} {method}"), skill, way, cases)
                    cells.append(maker.cell(model, method, dataset, scenario, fails))
    return {
        "format": 1,
        "kind": "kedit-bench",
        "spec": {"models": list(models), "methods": list(methods), "note": HOSTILE[0], "seed": seed},
        "manifest": {
            "versions": {"python": "3.11.2", "torch": "2.13.0", "kedit-core": "0.1.0"},
            "platform": "Linux x86_64",
            "threads": 1,
            "devices": ["cpu"],
            "started": "2026-05-01T10:00:00+00:00",
            "finished": "2026-05-01T13:20:05+00:00",
            "seconds": 12005.3,
        },
        "metrics": _declared(),
        "cells": cells,
    }


@functools.cache
def _declared() -> dict[str, dict[str, Any]]:
    return {
        info.name: {"summary": info.summary, "better": info.better} for info in Host(Catalogue.installed()).metrics()
    }


class _Maker:
    def __init__(self, chance: random.Random, skill: float, way: str, cases: int) -> None:
        self.chance, self.skill, self.way, self.count = chance, skill, way, cases

    def cell(self, model: str, method: str, dataset: str, scenario: Mapping[str, Any], fails: bool) -> dict[str, Any]:
        head = {
            "id": hashlib.sha256(f"{model} {method} {dataset} {scenario}".encode()).hexdigest()[:16],
            "model": model,
            "method": method,
            "label": method,
            "dataset": dataset,
            "scenario": dict(scenario),
            "hparams": {"layers": [3, 4], "v_lr": 0.5, "fact_token": "subject_last", "note": HOSTILE[1]},
            "hparams_source": "preset factworld-llama",
        }
        blank: dict[str, Any] = {
            "evaluation": None, "checkpoints": [], "immediate": None, "ages": [], "by_source": {}, "updates": [],
            "patch_bytes": [], "seconds": {}, "warnings": [], "ability": None,
        }  # fmt: skip
        if fails:
            return {
                **head,
                **blank,
                "status": "failed",
                "error": "MethodError: <b>the loss is not a number</b> in case 3",
            }
        sequential = scenario["kind"] == "sequential"
        n = scenario["size"] or self.count
        return {
            **head,
            **blank,
            "status": "done",
            "error": None,
            "evaluation": self.evaluation(scenario["kind"], n, min(n, self.count), 0.7 if sequential else 1.0),
            "checkpoints": [
                {
                    "edits": at,
                    "evaluation": self.evaluation("sequential", at, min(at, self.count), 1 - 0.3 * at / n, False),
                }
                for at in scenario["checkpoints"]
            ],
            "immediate": self.immediate(min(n, self.count)) if sequential else None,
            "ages": [
                {"from": low, "to": high, "edits": high - low + 1, "metrics": self.aged(drop)}
                for low, high, drop in ((1, 1, 0.0), (2, 5, 0.05), (6, 20, 0.15), (21, 100, 0.3))
            ]
            if sequential
            else [],
            "updates": [
                {
                    "case": f"case-{index}",
                    "place": f"model.layers.{layer}.mlp.down_proj.weight",
                    "norm": 10 * (size := 10 ** self.chance.gauss(-2 + self.skill, 0.4)),
                    "relative": size,
                    "rank": 1 if layer == 3 else None,
                }
                for index in range(self.count)
                for layer in (3, 4)
            ],
            "patch_bytes": [8192] * self.count,
            "seconds": {
                "load": 1.5,
                "base": 4.0,
                "edit": 60 * self.skill,
                "evaluate": 31.0,
                "total": 36.5 + 60 * self.skill,
            },
            "warnings": [{"code": "slow", "message": HOSTILE[1], "count": 3}] if method == "memit" else [],
            "ability": ABILITY if method == "rome" else None,
        }

    def evaluation(self, kind: str, n: int, count: int, kept: float, outputs: bool = True) -> dict[str, Any]:
        names = [f"case-{index}" for index in range(count)]
        metrics: dict[str, MetricResult] = {}
        for protocol, (mode, answers, ease) in PROTOCOLS.items():
            tag = self.tag(mode, "question-only", answers, kind, n)
            for metric, part, share in (
                ("reliability", None, 1.0),
                ("generalization", None, 0.9),
                ("locality", "neighborhood", 0.8),
                ("portability", "reasoning", 0.35),
            ):
                cases = {name: self.draw(self.skill * kept * share + ease) for name in names}
                metrics[f"{protocol}.{metric}"] = metric_result(
                    cases,
                    tag=tag,
                    case_parts={part: cases} if part else None,
                    outputs=[self.output(name, metric, part, score) for name, score in cases.items()]
                    if outputs
                    else [],
                )
        metrics |= self.errors(names, kind, n)
        cost = self.tag("efficiency", "compute_patch", "wall-clock", kind, n)
        metrics["efficiency.seconds"] = metric_result(
            {name: self.chance.uniform(0.5, 2) * self.skill for name in names},
            tag=cost,
            unit="seconds",
            statistics=("median", "p95"),
        )
        metrics["efficiency.patch_size"] = metric_result(
            dict.fromkeys(names, 8192.0 * self.skill), tag=cost.replace("wall-clock", "file-bytes"), unit="bytes"
        )
        return Evaluation(metrics=metrics, manifest={}).to_dict(outputs)

    def errors(self, names: Sequence[str], kind: str, n: int) -> dict[str, MetricResult]:
        tag = self.tag("gen_free", "question-only", "EM", kind, n)
        classes = ("meaningless", "partial", "missing", "irrelevant", "unchanged")
        counts = {name: {case: float(self.chance.random() > self.skill) for case in names} for name in classes}
        counts["irrelevant"] = {case: max(counts["irrelevant"][case], counts["unchanged"][case]) for case in names}
        failed = {case: float(any(counts[name][case] for name in classes)) for case in names}
        return {
            "errors.failed": metric_result(failed, tag=tag),
            "errors.missing": metric_result(counts["missing"], tag=tag),
            "errors.count": metric_result(
                {case: sum(counts[name][case] for name in classes[:4]) for case in names},
                tag=tag,
                case_parts=counts,
                unit="outputs",
            ),
        }

    def immediate(self, count: int) -> dict[str, Any]:
        cases = {f"case-{index}": self.draw(self.skill) for index in range(count)}
        return {
            f"gen_free.{metric}": {"value": sum(cases.values()) / count, "cases": cases}
            for metric in ("reliability", "generalization")
        }

    def aged(self, drop: float) -> dict[str, float]:
        return {f"gen_free.{name}": max(0.0, self.skill - drop) for name in ("reliability", "locality")}

    def output(self, case: str, kind: str, part: str | None, score: float) -> dict[str, Any]:
        number = int(case.rpartition("-")[2])
        prompt = HOSTILE[number] if number < len(HOSTILE) else f"{kind}: the capital of country {number} is"
        return {
            "case": case,
            "kind": kind,
            "part": part,
            "prompt": prompt,
            "expected": [f"City {number}", f"{number}ville"],
            "base": f"Old Town {number}",
            "edited": f"City {number}"
            if score
            else self.chance.choice((f"Old Town {number}", "", HOSTILE[number % 6])),
            "score": score,
            "contain": bool(score),
            "f1": score,
        }

    def draw(self, share: float) -> float:
        return float(self.chance.random() < share)

    def tag(self, mode: str, context: str, answers: str, kind: str, n: int) -> str:
        return str(Tag(mode=mode, context=context, answer_source=answers, scenario=kind, n=n, way=self.way))
