"""A check after the first backward pass: that everything that is to train was reached."""

from typing import Any

from torch import nn
from transformers import TrainerCallback

from holdfast.errors import HoldfastError

SHOWN = 5


def without_gradient(model: nn.Module) -> list[str]:
    """Names of trainable parameters that no backward pass has reached.

    A gradient of zeros is one: LoRA's A has it at the first step, where B is zero.
    """
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


def require_gradients(model: nn.Module) -> None:
    """Check that every trainable parameter has a gradient; call it after the first backward pass.

    Autograd skips without a word what no gradient can reach: SURE's own code trained nothing but the head on its
    speech recognition tasks, where gradient checkpoints met frozen inputs. What holds no parameter on this rank, as
    shards may, is passed over.

    Raises:
        HoldfastError: some have none; the message names them.
    """
    parameters = dict(model.named_parameters())
    missing = [name for name in without_gradient(model) if parameters[name].numel()]
    if not missing:
        return
    trainable = sum(p.requires_grad for p in parameters.values())
    shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
    raise HoldfastError(
        f"{len(missing)} of {trainable} trainable parameters got no gradient: {shown}",
        wanted="a gradient for each after the first backward pass",
        causes=[
            "reentrant gradient checkpointing, and no input of a checkpoint needs a gradient",
            "a part of the model that the loss does not use (a decoder, a pooler, another head)",
            "a layer that was dropped at this step (layerdrop)",
        ],
        remedy="use gradient_checkpointing_kwargs={'use_reentrant': False} or model.enable_input_require_grads(); "
        "leave unused parts out of target_modules and modules_to_save; set layerdrop to 0",
    )


class GradientCheck(TrainerCallback):
    """Runs `require_gradients` before the first optimizer step of any Trainer.

    trainer = Trainer(model=model, ..., callbacks=[GradientCheck()])
    """

    def __init__(self) -> None:
        self.checked = False

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check once.

        Raises:
            HoldfastError: see `require_gradients`.
        """
        if not self.checked:
            self.checked = True
            require_gradients(kwargs["model"])
