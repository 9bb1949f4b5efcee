"""Labels drawn from the model, the same in whatever batch, order or process a sequence comes."""

import math
import zlib
from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 2**20  # numbers that are skipped at once


class LabelSampler:
    """Draws labels y ~ p(y | x) by inverting the cumulative distribution: one uniform number per random choice.

    The choices of a sequence draw from a generator seeded by the sequence's own input, so a draw does not depend on
    the batch, the order or the rank that the sequence came in. Choices without a key draw in order.

    Attributes:
        drawn: how many numbers were drawn in order.
        turn: what a process that shares the order with others asks before it draws so many: how many numbers the
            others draw before its own, and after them.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.drawn = 0
        self.turn: Callable[[int], tuple[int, int]] = _alone
        self._stream = torch.Generator().manual_seed(seed)

    @staticmethod
    def key(row: Tensor) -> int:
        """What stands in for one sequence's input, padding left out."""
        return zlib.crc32(row.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def uniform(self, sequence: Tensor, keys: list[int] | None) -> Tensor:
        """(sites,) on the CPU, float32 in [0, 1), for choices in the order of their sequences (sites,)."""
        return self.uniforms(sequence, keys, 1)[0]

    def uniforms(self, sequence: Tensor, keys: list[int] | None, draws: int) -> Tensor:
        """(draws, sites): as `uniform`, several times over; the first of them is `uniform`'s."""
        if keys is None:
            before, after = self.turn(draws * len(sequence))
            self.skip(before)
            numbers = torch.rand(draws, len(sequence), generator=self._stream)
            self.drawn += numbers.numel()
            self.skip(after)
            return numbers
        which, counts = torch.unique_consecutive(sequence.cpu(), return_counts=True)
        drawn = []
        for row, count in zip(which.tolist(), counts.tolist(), strict=True):
            seed = keys[row] ^ (self.seed * 0x9E3779B1 & 0xFFFFFFFF)
            drawn.append(torch.rand(draws, count, generator=torch.Generator().manual_seed(seed)))
        return torch.cat(drawn, dim=1) if drawn else torch.empty(draws, 0)

    def skip(self, count: int) -> None:
        """Let so many numbers of the order go by."""
        for start in range(0, count, CHUNK):
            torch.rand(min(CHUNK, count - start), generator=self._stream)
        self.drawn += count

    @staticmethod
    def draw(probabilities: Tensor, uniform: Tensor) -> Tensor:
        """(items,) labels for (items, classes) probabilities and (items,) uniform numbers in [0, 1).

        First a block of about sqrt(classes) classes, then a class in it: a running sum over all classes is slower
        and, in float32 over a large vocabulary, less exact.
        """
        classes = probabilities.shape[1]
        width = math.isqrt(classes)
        whole = classes // width * width
        blocks = probabilities[:, :whole].unflatten(1, (-1, width)).sum(dim=2)
        blocks = torch.cat([blocks, probabilities[:, whole:].sum(dim=1, keepdim=True)], dim=1)
        upto = blocks.cumsum(dim=1)
        target = uniform.to(probabilities)[:, None] * upto[:, -1:]
        block = _first_above(upto, target)
        target -= (upto - blocks).gather(1, block)
        columns = block * width + torch.arange(width, device=block.device)  # (items, width)
        inside = probabilities.gather(1, columns.clamp(max=classes - 1)).masked_fill_(columns >= classes, 0)
        return (block * width + _first_above(inside.cumsum(dim=1), target)).squeeze(1).clamp_(max=classes - 1)


def _alone(count: int) -> tuple[int, int]:
    return 0, 0


def _first_above(running: Tensor, target: Tensor) -> Tensor:
    """(rows, 1): where a row's running sum first exceeds its target; the last place when rounding hides it."""
    return torch.searchsorted(running, target, right=True).clamp_(max=running.shape[1] - 1)
