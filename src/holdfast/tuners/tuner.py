"""The interface of the room: make a pre-trained model trainable in few parameters."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from torch import nn

from holdfast.recipe import Settings
from holdfast.targets import Targets

ADAPTER = "default"  # what PEFT calls an adapter that nobody named


class Tuner(ABC):
    """Prepares a model for training, by options of its own.

    Attributes:
        name, paper: as `holdfast methods` lists them.
        Options: what it can be told; `chosen` in `holdfast.tuners.options` makes them from a recipe's values.
        sizes: the options that say how many parameters it trains; a budget of them sets the first, with which the
            count grows. None where it trains what it trains.
        least: the smallest value of that option.
        counts: whether that option is the number of trained parameters itself.
        shifts: whether what it trains moves weights of the targeted layers, which anchors of weights price.
        adapter: whether it leaves one, which can be switched off; else the model itself is changed.
        registered_by: the module that makes PEFT know the method, for those that PEFT lacks; else None.

    Args:
        options: of the class `Options`; None takes the defaults.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    Options: ClassVar[type[Settings]] = Settings
    sizes: ClassVar[tuple[str, ...]] = ()
    least: ClassVar[int] = 1
    counts: ClassVar[bool] = False
    shifts: ClassVar[bool] = True
    adapter: ClassVar[bool] = True
    registered_by: ClassVar[str | None] = None
    options: Any

    def __init__(self, options: Settings | None = None) -> None:
        self.options = self.Options() if options is None else options

    @abstractmethod
    def prepare(self, model: nn.Module, targets: Targets) -> nn.Module:
        """The model to train: adapters injected, or weights made trainable.

        Args:
            model: pre-trained; changed in place.
            targets: the layers. "all-linear", the default of recipes, leaves the choice to methods that adapt other
                things than linear layers.

        Raises:
            HoldfastError: targets that match nothing, or a model that the method is not for.
        """

    def sized(self, size: int) -> "Tuner":
        """The same method with another size."""
        return type(self)(self.options.model_copy(update={self.sizes[0]: size}))

    def smaller(self) -> Iterator["Tuner"]:
        """Other forms of the method, each with fewer parameters at its smallest size than the one before.

        A budget below the method's smallest takes the first that fits.
        """
        return iter(())

    def ready(self, model: nn.Module, batches: Sequence[Any]) -> None:  # noqa: B027  # most need nothing
        """What has to happen with data before the first step, such as choosing what trains.

        Args:
            model: as `prepare` gave it.
            batches: of the data that it will be trained on, in the order of training.
        """

    def wants(self) -> int:
        """How many batches `ready` reads."""
        return 0

    @property
    def positions(self) -> int:
        """How many positions it takes before every sequence."""
        return 0

    @property
    def steady(self) -> bool:
        """Whether each trained number is the same weight's from the start to the end, or counted from it."""
        return True

    def callbacks(self) -> list[Any]:
        """What a `transformers` trainer has to call while the model trains."""
        return []

    def component(self, name: str) -> str:
        """The part of the method that a trained parameter belongs to: what counts are given by.

        Args:
            name: as `model.named_parameters()` gives it.
        """
        return component(name)


def component(name: str) -> str:
    """What PEFT calls the parameter: "lora_A" of "...q_proj.lora_A.default.weight"; "weight" of a bare layer's."""
    parts = name.split(".")
    if ADAPTER not in parts:
        return parts[-1]
    return "modules_to_save" if "modules_to_save" in parts else parts[parts.index(ADAPTER) - 1]
