"""LoRA and AdaLoRA as editing methods. Needs torch, and peft when an edit is made."""

from kedit_methods_finetune.lora.method import AdaLora, Lora

__all__ = ["AdaLora", "Lora"]
