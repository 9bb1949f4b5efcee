"""Training the biases alone."""

from typing import Literal

from pydantic import Field
from torch import nn

from holdfast.errors import HoldfastError
from holdfast.recipe import Settings
from holdfast.targets import ALL_LINEAR, Targets, select
from holdfast.tuners.tuner import Tuner


class BitFitOptions(Settings):
    """Of bias tuning."""

    of: Literal["model", "targets"] = Field(
        "model", description="every bias, norms' included, or those of the targets"
    )


class BitFit(Tuner):
    """Only biases train, every one of the model's or those of the targeted layers.

    PEFT has no adapter of biases alone, so the tuned model is saved whole, as full fine-tuning's is, and loads
    anywhere. Without an adapter to switch off, distillation needs the model's answers stored (distill_top_k).
    """

    name = "bitfit"
    paper = "BitFit, arXiv 2106.10199"
    Options = BitFitOptions
    shifts = False
    adapter = False
    options: BitFitOptions

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        if self.options.of == "model" and targets != ALL_LINEAR:
            raise HoldfastError(
                f"--targets {targets}: every bias of the model trains",
                remedy="--set tuner.of=targets, or leave the targets out",
            )
        modules = model.modules() if self.options.of == "model" else select(model, targets).values()
        biases = {id(one): one for module in modules for one in _biases(module)}
        if not biases:
            where = "the model has" if self.options.of == "model" else "the targeted layers have"
            raise HoldfastError(
                f"{where} no biases to train",
                causes=["Llama, Mistral, T5 and many others do without"],
                remedy="--method ia3 trains as few parameters on such models",
            )
        model.requires_grad_(False)
        for bias in biases.values():
            bias.requires_grad_(True)
        return model


def _biases(module: nn.Module) -> list[nn.Parameter]:
    """Its own ones; torch's recurrent and attention layers have several, with other names."""
    own = module.named_parameters(recurse=False)
    return [one for name, one in own if "bias" in name and one.is_floating_point() and one.dim() == 1]
