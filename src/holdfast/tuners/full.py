"""Full fine-tuning of the targeted layers."""

from torch import nn

from holdfast.layers import weight_parameters
from holdfast.targets import Targets, select
from holdfast.tuners.tuner import Tuner


class Full(Tuner):
    """Every weight of the targeted layers is trained; the shift is dense.

    Of a weight that is computed at every use, as weight norm's is, what it is computed from: the model keeps its form.
    """

    name = "full"
    paper = ""
    adapter = False

    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        layers = select(model, targets)
        model.requires_grad_(False)
        for layer in layers.values():
            for parameter in weight_parameters(layer):
                parameter.requires_grad_(True)
        return model
