"""Full fine-tuning of the targeted layers."""

from torch import nn

from holdfast.targets import Targets, select
from holdfast.tuners.tuner import Tuner


class Full(Tuner):
    """Every weight of the targeted layers is trained; the shift is dense."""

    name = "full"
    paper = ""
    adapter = False

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        layers = select(model, targets)
        model.requires_grad_(False)
        for layer in layers.values():
            layer.weight.requires_grad_(True)
        return model
