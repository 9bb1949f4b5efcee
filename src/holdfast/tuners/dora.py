"""Weight-decomposed LoRA through PEFT."""

from typing import ClassVar

from holdfast.tuners.lora import Lora


class Dora(Lora):
    """LoRA on the direction and a trained magnitude per output."""

    name = "dora"
    paper = "DoRA, arXiv 2402.09353"
    flags: ClassVar = {"use_dora": True}
