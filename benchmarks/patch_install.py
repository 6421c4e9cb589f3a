"""Putting a patch on and taking it off, against a plain copy of the touched tensor: ratios in one run.

    python benchmarks/patch_install.py [--json FILE]

One linear layer of the given size in a small model; a rank-1 patch is applied and removed again and again. `copy` is a
clone of the touched weight put in its place, in turns with the patch, so that both pay alike for fresh memory.
Verification (hashing the base) is reported apart: it is done once per base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kedit_core.patches import EditPatch, LowRankDelta, PatchStack

SIZES = ((768, 3072), (1600, 6400), (4096, 11008))
DTYPES = (torch.float32, torch.bfloat16)


class Model(nn.Module):
    """One projection with a name."""

    def __init__(self, out: int, inner: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.down_proj = nn.Linear(inner, out, bias=False, dtype=dtype)


def measure(out: int, inner: int, dtype: torch.dtype, repeats: int) -> dict[str, Any]:
    """One row of the table."""
    model = Model(out, inner, dtype)
    stack = PatchStack.of(model)
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(out, 1, generator=generator), torch.randn(1, inner, generator=generator)
    delta = LowRankDelta("down_proj.weight", left, right * 1e-3)
    start = time.perf_counter()
    base = stack.base_of([delta])
    hashing = time.perf_counter() - start
    patch = EditPatch.build(
        method={"name": "none", "distribution": "none", "version": "0"},
        hparams={},
        seed=0,
        parents=(),
        requires=(),
        base=base,
        operations=(delta,),
        state_config={},
        state_tensors={},
        requests=(),
    )
    kept = model.down_proj.weight.data
    install, remove, verify, copies = [], [], [], []
    for _ in range(repeats):
        # a copy put in the weight's place and dropped again: what any edit that keeps the base must do at least
        start = time.perf_counter()
        model.down_proj.weight.data = model.down_proj.weight.data.clone()
        copies.append(time.perf_counter() - start)
        model.down_proj.weight.data = kept
        stack.apply(patch)
        install.append(stack.timings.install)
        verify.append(stack.timings.verify)
        start = time.perf_counter()
        stack.remove(patch)
        remove.append(time.perf_counter() - start)
    copy = statistics.median(copies)
    return {
        "shape": [out, inner],
        "dtype": str(dtype).removeprefix("torch."),
        "copy_ms": copy * 1e3,
        "install_ms": statistics.median(install) * 1e3,
        "install_over_copy": statistics.median(install) / copy,
        "remove_ms": statistics.median(remove) * 1e3,
        "remove_over_copy": statistics.median(remove) / copy,
        "same_storage_after": model.down_proj.weight.data_ptr() == kept.data_ptr(),
        "first_hash_ms": hashing * 1e3,
        "verify_again_ms": statistics.median(verify) * 1e3,
    }


def main() -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description="Patch installation against a copy.")
    parser.add_argument("--repeats", type=int, default=101)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(out, inner, dtype, options.repeats) for dtype in DTYPES for out, inner in SIZES]
    print(f"{'shape':>14} {'dtype':>9} {'copy ms':>9} {'install':>9} {'remove':>9} {'hash once ms':>13} same storage")
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        print(
            f"{shape:>14} {row['dtype']:>9} {row['copy_ms']:9.2f} {row['install_over_copy']:8.2f}x "
            f"{row['remove_over_copy']:8.3f}x {row['first_hash_ms']:13.1f} {row['same_storage_after']}"
        )
    if options.json:
        options.json.write_text(json.dumps({"threads": torch.get_num_threads(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
