"""What this distribution's methods are, without importing torch: the values of its ``kedit.methods`` entry points."""

from __future__ import annotations

from kedit_core.contract import MethodInfo

ft_l = MethodInfo(
    name="ft_l",
    summary="Fine-tuning of one projection on the new answer, kept near the weights (FT-L; Zhu et al. 2020)",
    family="finetune",
    implementation="kedit_methods_finetune.ft:FtL",
    hparams="kedit_methods_finetune.hparams:FtLHyperParams",
    operations=frozenset({"dense_delta"}),
    presets="kedit_methods_finetune:presets/ft_l",
)

ft_m = MethodInfo(
    name="ft_m",
    summary="Fine-tuning of one projection on the new answer's own tokens (FT-M)",
    family="finetune",
    implementation="kedit_methods_finetune.ft:FtM",
    hparams="kedit_methods_finetune.hparams:FtMHyperParams",
    operations=frozenset({"dense_delta"}),
    presets="kedit_methods_finetune:presets/ft_m",
)

ft_bf = MethodInfo(
    name="ft_bf",
    summary="Breadth-first fine-tuning: epoch after epoch over all facts in mini-batches (LocFT-BF)",
    family="finetune",
    implementation="kedit_methods_finetune.ft:FtBf",
    hparams="kedit_methods_finetune.hparams:FtBfHyperParams",
    operations=frozenset({"dense_delta"}),
    presets="kedit_methods_finetune:presets/ft_bf",
)

lora = MethodInfo(
    name="lora",
    summary="Low-rank adapters trained on the new answer (Hu et al. 2021), through peft",
    family="finetune",
    implementation="kedit_methods_finetune.lora:Lora",
    hparams="kedit_methods_finetune.hparams:LoraHyperParams",
    operations=frozenset({"low_rank_delta"}),
    presets="kedit_methods_finetune:presets/lora",
)

adalora = MethodInfo(
    name="adalora",
    summary="Low-rank adapters with rank allocation (Zhang et al. 2023), through peft",
    family="finetune",
    implementation="kedit_methods_finetune.lora:AdaLora",
    hparams="kedit_methods_finetune.hparams:AdaLoraHyperParams",
    operations=frozenset({"low_rank_delta"}),
    presets="kedit_methods_finetune:presets/adalora",
)
