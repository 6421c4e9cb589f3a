"""Collect the statistics that the package ships: those of the layers that ROME's and R-ROME's presets edit.

Needs kedit-methods-locate. The files are named by the key that an edit looks for, which depends on the weights, the
tokenizer and the corpus: after any of these changes, run this again. Left out is what is no result (wall time) and what
follows from the numbers but for rounding (the summary).

python scripts/make_stats.py
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs

from kedit_core import Editor
from kedit_factworld.files import MODELS, PREFIX, STATISTICS, data_folder
from kedit_methods_locate.commands.stats import stats
from kedit_methods_locate.stats import load_statistics, save_statistics

METHODS = ("rome", "r_rome")
NOT_KEPT = ("seconds", "summary")


def preset_layers(model: str) -> list[int]:
    """The layers that the methods edit in this model by default."""
    editors = [Editor.from_pretrained(model, method) for method in METHODS]
    settings = [editor.settings.hparams.to_dict() for editor in editors if editor.settings is not None]
    return sorted({int(values["layer"]) for values in settings})


def collect(model: str, layers: Sequence[int], folder: Path) -> None:
    """The statistics of some layers, one file each, named by its key."""
    numbers = ",".join(map(str, layers))
    stats.main([model, "--layers", numbers, "-o", str(folder)], standalone_mode=False)


def trimmed(path: Path) -> None:
    """Rewrite a file so that equal statistics are equal bytes."""
    kept = []
    for statistic in load_statistics(path):
        record = {name: value for name, value in statistic.record.items() if name not in NOT_KEPT}
        kept.append(attrs.evolve(statistic, record=record))
    save_statistics(path, kept)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=data_folder() / STATISTICS)
    args = parser.parse_args(arguments)
    shutil.rmtree(args.out, ignore_errors=True)  # or they would be found, and not collected
    args.out.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["KEDIT_CACHE"] = str(Path(scratch) / "cache")
        for kind in MODELS:
            collect(PREFIX + kind, preset_layers(PREFIX + kind), Path(scratch) / "new")
        for path in sorted((Path(scratch) / "new").iterdir()):
            trimmed(path)
            shutil.copyfile(path, args.out / path.name)


if __name__ == "__main__":
    main()
