"""Examples of a layer kept as they are: inputs and output gradients of a random choice of positions or sequences."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holdfast.curvature.statistic import LayerSize, Reading, Statistic
from holdfast.errors import HoldfastError
from holdfast.factors.amount import Amount
from holdfast.rows.origin import Origin

SLACK = 1.25  # more than `keep` by this factor are held before they are thinned out again: fewer copies
HIGHEST = 2**62  # above every priority


class Kept(NamedTuple):
    """Some examples, padded with zeros to one number t of rows.

    Attributes:
        priorities: (n,) what decides whether an example stays; the same for an example in every layer.
        inputs: (n, t, in), or indices of one-hot inputs, (n, t).
        gradients: (n, t, out).
    """

    priorities: Tensor
    inputs: Tensor
    gradients: Tensor


class Examples(Statistic):
    """The `keep` examples of the lowest random priority: each is kept with the same probability.

    Per token, example (k, t) is position t of sequence k, with its rows in all of the layer's calls; per sequence,
    example k is all of its rows. Priorities are drawn from a generator seeded by what stands in for the sequence's
    input (or by its number, where the source names no sequences), position by position: they are the same in every
    layer with the same rows, whatever batch, order, padding, process or draw of other sequences an example comes in.
    What is kept of two data sets is chosen among what was kept of each. `rows` counts all examples that were seen.
    """

    reads = "pairs"
    additive = False

    def __init__(self, size: LayerSize, reading: Reading, first: Any = None) -> None:
        if reading.keep < 1:
            raise HoldfastError(f"keep={reading.keep}", wanted="at least one example")
        super().__init__(size, reading, first)
        self.peer: tuple[str, Examples] | None = None  # another layer, by name, that must keep the same examples
        self._kept: list[Kept] = []
        self._names = torch.empty(0, dtype=torch.int64)  # of examples that were let go of
        self._counted: dict[int, int] = {}  # draw -> sequences without a key so far

    @property
    def grouped(self) -> bool:
        return True

    def zero(self, like: Tensor) -> Tensor:
        return like.new_zeros(0)  # nothing is summed

    def add(self, *rows: Tensor, origin: Origin | None = None) -> None:
        rows = tuple(self._cast(r) for r in rows)
        if self.sum is None:
            self.sum = self.zero(rows[-1])
        self._held.append((rows, origin or Origin([1] * len(rows[0]))))

    def flush(self) -> None:
        if not self._held:
            return
        calls = Calls([origin.lengths for _, origin in self._held])
        inputs, gradients = (_together([rows[side] for rows, _ in self._held]) for side in (0, 1))
        priorities = self._priorities(self._held[0][1], calls.examples(self.reading.per))
        self._held.clear()
        self.rows += len(priorities)
        chosen = (priorities <= self._limit(priorities)).nonzero().squeeze(1)
        if not len(chosen):
            return
        index = calls.rows_of(chosen, self.reading.per).to(gradients.device)  # (n, t), -1 where there is no row
        assert self.sum is not None
        self.accumulate(self.sum, _at(inputs, index), _at(gradients, index), priorities[chosen])

    def accumulate(self, total: Tensor, *rows: Tensor) -> None:
        """Keep examples: inputs (n, t, in), gradients (n, t, out), and their priorities (n,)."""
        inputs, gradients, priorities = rows
        if self.reading.offload is not None:  # they are copied a few at a time: memory that is mapped gains nothing
            inputs, gradients = inputs.cpu(), gradients.cpu()
        self._kept.append(Kept(priorities, inputs, gradients))
        if sum(len(some.priorities) for some in self._kept) > SLACK * self.reading.keep:
            self._kept = [self.kept()]

    def _priorities(self, origin: Origin, counts: Sequence[int]) -> Tensor:
        """(examples,) one number each, `counts` of them for each sequence."""
        keys: Sequence[object] | None = origin.keys
        if keys is None:
            start = self._counted.get(origin.draw, 0)
            keys = [f"number {number}" for number in range(start, start + len(counts))]
            self._counted[origin.draw] = start + len(counts)
        drawn = [
            priorities_of(f"{self.reading.seed} {key} {origin.draw}", count)
            for key, count in zip(keys, counts, strict=True)
            if count
        ]
        return torch.cat(drawn) if drawn else torch.empty(0, dtype=torch.int64)

    def _limit(self, more: Tensor) -> int:
        """The highest priority that still stays when more examples come."""
        if sum(len(some.priorities) for some in self._kept) + len(more) <= self.reading.keep:
            return HIGHEST
        together = torch.cat([*(some.priorities for some in self._kept), more])
        return int(together.kthvalue(self.reading.keep).values)

    def kept(self) -> Kept:
        """The chosen examples so far, by priority."""
        priorities = torch.cat([some.priorities for some in self._kept])
        order = priorities.argsort(stable=True)[: self.reading.keep]
        longest, device = max(some.gradients.shape[1] for some in self._kept), self._kept[-1].gradients.device
        inputs, gradients = (
            torch.cat([padded(some[side].to(device), longest) for some in self._kept])[order.to(device)]
            for side in (1, 2)
        )
        return Kept(priorities[order], inputs, gradients)

    @classmethod
    def amount(cls, size: LayerSize, reading: Reading) -> Amount:
        """Where layers are called once."""
        rows = reading.keep * (reading.length if reading.per == "sequence" else 1)
        used = rows * (size.out + (1 if size.indexed else size.inn))
        return Amount(int(SLACK * used) * reading.halves, used, used)

    @property
    def names(self) -> Tensor:
        """(n,) the priorities of the chosen examples, in their order; known after `release` too."""
        return torch.cat([self._names, *(some.priorities for some in self._kept)]).sort().values[: self.reading.keep]

    def release(self) -> None:
        super().release()
        self._names = self.names
        self._kept.clear()

    def state(self) -> dict[str, Tensor]:
        counted = [self._counted.get(draw, 0) for draw in range(max(self._counted, default=-1) + 1)]
        held = self.kept()._asdict() if self._kept else {}
        return super().state() | {"counted": torch.tensor(counted, dtype=torch.int64)} | held

    def merge(self, state: dict[str, Tensor]) -> None:
        self.rows += int(state["rows"])
        self.sum = state.get("sum", self.sum)
        for draw, count in enumerate(state["counted"].tolist()):
            self._counted[draw] = max(self._counted.get(draw, 0), count)
        if "priorities" in state:
            self.accumulate(state["sum"], state["inputs"], state["gradients"], state["priorities"].cpu())


class Calls:
    """Where the rows of each sequence lie in the calls of a layer in one pass, the calls one after another.

    Args:
        lengths: for each call, the rows of each sequence of the batch.
    """

    def __init__(self, lengths: Sequence[Sequence[int]]) -> None:
        self.lengths = torch.tensor(lengths, dtype=torch.int64)  # (calls, batch)
        ends = self.lengths.flatten().cumsum(0).view_as(self.lengths)
        self.starts = ends - self.lengths

    def examples(self, per: str) -> list[int]:
        """How many examples each sequence has."""
        longest = self.lengths.amax(dim=0)  # without rows it is no example
        return (longest if per == "token" else longest.clamp_max(1)).tolist()

    def rows_of(self, chosen: Tensor, per: str) -> Tensor:
        """The numbers of the chosen examples' rows, (n, t), -1 where one has fewer rows than others."""
        counts = torch.tensor(self.examples(per))
        sequence = torch.arange(len(counts)).repeat_interleave(counts)[chosen]
        if per == "token":
            position = chosen - (counts.cumsum(0) - counts)[sequence]
            rows = self.starts[:, sequence] + position  # (calls, n)
            return rows.masked_fill(position >= self.lengths[:, sequence], -1).T
        each = [
            torch.cat([torch.arange(start, start + length) for start, length in zip(*one, strict=True)])
            for one in zip(self.starts.T[sequence].tolist(), self.lengths.T[sequence].tolist(), strict=True)
        ]
        return pad_sequence(each, batch_first=True, padding_value=-1)


@lru_cache(maxsize=512)  # every layer asks the same of every batch
def priorities_of(named: str, count: int) -> Tensor:
    """(count,) random numbers that depend on the name alone."""
    seed = int.from_bytes(hashlib.blake2b(named.encode(), digest_size=4).digest())  # the generator uses 32 bits
    return torch.randint(HIGHEST, (count,), generator=torch.Generator().manual_seed(seed))


def _together(calls: list[Tensor]) -> Tensor:
    return calls[0] if len(calls) == 1 else torch.cat(calls)


def _at(rows: Tensor, index: Tensor) -> Tensor:
    """rows[index], zero where the index is -1."""
    found, missing = rows[index.clamp_min(0)], index < 0
    return found.masked_fill_(missing.reshape(*missing.shape, *[1] * (found.dim() - 2)), 0)


def padded(rows: Tensor, longest: int) -> Tensor:
    """(n, t, ...) with zeros up to `longest` rows each."""
    short = longest - rows.shape[1]
    return rows if not short else F.pad(rows, (0, 0) * (rows.dim() - 2) + (0, short))
