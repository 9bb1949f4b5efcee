"""What the likelihoods share whose outputs are one row per item."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from holdfast.likelihoods.likelihood import Likelihood, Uniforms, unlabelled


class Rowwise(Likelihood):
    """Rows (rows, columns) of outputs that are independent given the input; `scored` (rows,) says which count.

    Args:
        outputs: (rows, columns), on the model's graph.
        targets: the data's labels for all rows, or None.
        scored: (rows,) boolean.
        sequence: (rows,) the sequence of the batch that each row belongs to, in order; None: not known.
    """

    def __init__(self, outputs: Tensor, targets: Tensor | None, scored: Tensor, sequence: Tensor | None) -> None:
        self.outputs, self.targets, self.scored = outputs, targets, scored
        self.sequence = torch.zeros_like(scored, dtype=torch.long) if sequence is None else sequence
        self.items = int(scored.sum())
        self.columns = outputs.shape[1]

    @abstractmethod
    def column_gradient(self, column: int) -> Tensor:
        """(rows, columns): one of the gradients whose squares sum to each row's Fisher; zero where not scored."""

    def exact_gradients(self, uniforms: Uniforms) -> Iterator[Tensor]:
        """One gradient per column, with a random sign for each row."""
        for column, uniform in enumerate(self._choices(uniforms, self.outputs.shape[1])):
            gradient = self.column_gradient(column)
            yield gradient.mul_(torch.where(uniform < 0.5, -1, 1)).to(self.outputs.dtype)

    def labels(self) -> Tensor:
        """The data's labels; raises HoldfastError when there are none."""
        if self.targets is None:
            raise unlabelled()
        return self.targets

    def _choices(self, uniforms: Uniforms, draws: int, each: int = 1) -> Tensor:
        """(draws, rows, each) uniform numbers: `each` for every scored row, 0 where nothing is scored."""
        spread = torch.zeros(draws, len(self.scored), each, device=self.outputs.device)
        drawn = uniforms(self.sequence[self.scored].repeat_interleave(each), draws)
        spread[:, self.scored] = drawn.unflatten(1, (self.items, each)).to(spread.device)
        return spread
