"""What every library is asked for: one structure on the workload, ready to be timed."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

Case = tuple[str, str, str]  # structure, labels ("sampled" or "data"), per ("token" or "sequence")


@dataclass
class Prepared:
    """A library ready to be timed."""

    run: Callable[[], object]
    kind: str  # what it sums
    # Layer and D to C D, up to a factor, of the last run; None where the library does not give its result out.
    apply: Callable[[str, Tensor], Tensor] | None = None


Prepare = Callable[[nn.Module, Tensor, str], Prepared]  # model, token ids, labels


class Classes(nn.Module):
    """Token ids to logits as these libraries want them: (batch, classes, positions), the last position left out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) to (batch, vocabulary, length - 1)."""
        return self.model(input_ids=ids).logits[:, :-1].transpose(1, 2)


class Items(nn.Module):
    """Token ids to the logits of all items, (batch * (length - 1), vocabulary)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, length) to (items, vocabulary)."""
        return self.model(input_ids=ids).logits[:, :-1].flatten(0, 1)


def targets(model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the blocks."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and "layers." in n}
