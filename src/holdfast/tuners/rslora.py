"""Rank-stabilised LoRA through PEFT."""

from typing import ClassVar

from holdfast.tuners.lora import Lora


class RsLora(Lora):
    """LoRA scaled by alpha/sqrt(rank) instead of alpha/rank."""

    name = "rslora"
    paper = "rsLoRA, arXiv 2312.03732"
    flags: ClassVar = {"use_rslora": True}
