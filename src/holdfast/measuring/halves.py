"""What a pass fills: one set of sums, or one for each half of the data, on every rank that takes part."""

import zlib
from collections.abc import Callable, Mapping, Sequence

from torch import Tensor

from holdfast.likelihood import LabelSampler
from holdfast.measuring.accumulation import groups_together, on_first_rank, over_ranks, parts, taken_in
from holdfast.measuring.agreement import agreement
from holdfast.measuring.measurement import Summation, Watch
from holdfast.measuring.ranks import Ranks
from holdfast.measuring.sharding import Post
from holdfast.statistics import InputsDivergedError

Make = Callable[[Watch, Post | None], Summation]


class Halves:
    """Sums that take rounds of batches in turn.

    Args:
        sums: one, or two that watch the model in the same way.
        sampler: of the labels for all of them.
        ranks: that sum together.
        owners: layer -> the rank that holds its sums; None: each rank holds what it saw.
        groups: which layers share, as far as that is known.
    """

    def __init__(
        self,
        sums: Sequence[Summation],
        sampler: LabelSampler,
        ranks: Ranks,
        owners: Mapping[str, int] | None,
        groups: Mapping[str, str] | None,
    ) -> None:
        self.sums, self.ranks, self.owners = list(sums), ranks, owners
        self.groups = dict(groups or {})
        self._seen = {0}  # marks of groups that are known to fit
        for one in self.sums:
            one.sampler = sampler

    def of_round(self, number: int) -> Summation:
        """Whose turn it is."""
        return self.sums[number % len(self.sums)]

    @staticmethod
    def mark(one: Summation) -> int:
        """A number that stands for what is known of its groups, never 0."""
        return zlib.crc32(repr(one.groups).encode()) + 1

    def align(self, marks: Sequence[int]) -> None:
        """All that any rank and half saw of which layers share must fit together; `marks` are what changed, by rank.

        Raises:
            InputsDivergedError: it does not, on all ranks alike.
        """
        if self._seen.issuperset(marks):
            return
        self._seen.update(marks)
        found = [groups for one in self.ranks.gathered([half.groups for half in self.sums]) for groups in one]
        together = groups_together([self.groups, *found])
        if together is None:
            raise InputsDivergedError("layers that are given one and the same input in some batches are not in others")
        self.groups = together

    def agreement(self, items: Sequence[int]) -> float:
        """See `holdfast.measuring.agreement.agreement`."""
        self._follow()
        owners, rank = self.owners, self.ranks.rank
        owned = None if owners is None else (lambda layer: owners[layer] == rank)
        return agreement(self.sums, items, self.ranks, owned)

    def whole(self, items: int) -> Summation:
        """All halves of all ranks in one, which is what is left."""
        self._follow()
        whole, *others = self.sums
        for (layer, name), statistic in parts(whole.sums).items():
            for other in others:
                statistic.merge(other.sums[layer][name].state())
        if self.owners is None:
            own = parts(whole.sums)
            for key, made in over_ranks(own, self.ranks, whole.place).items():
                if made is not own[key]:
                    whole.put(own[key], made)
        whole.items = items
        self.sums = [whole]
        return whole

    def stored(self, *, complete: bool) -> dict[str, Tensor]:
        """All sums over all ranks, in the CPU's memory of rank 0; `complete` where every rank holds them already."""
        self._follow()
        tensors: dict[str, Tensor] = {}
        for number, half in enumerate(self.sums):
            for (layer, name), statistic in parts(half.sums).items():
                owner = self.owners[layer] if self.owners is not None else 0 if complete else None
                state = on_first_rank(statistic, self.ranks, owner, half.place(layer))
                tensors |= {f"{number}/{layer}/{name}/{part}": tensor for part, tensor in state.items()}
        return tensors

    def take_in(self, tensors: Mapping[str, Tensor]) -> None:
        """Sums that were stored, read on rank 0: to their owners, or to rank 0 itself."""
        for number, half in enumerate(self.sums):
            for (layer, name), statistic in parts(half.sums).items():
                before = f"{number}/{layer}/{name}/"
                own = {key.removeprefix(before): t for key, t in tensors.items() if key.startswith(before)}
                owner = 0 if self.owners is None else self.owners[layer]
                state = self.ranks.moved(own if self.ranks.first else None, 0, owner)
                if state:
                    taken_in(statistic, state, half.place(layer))

    def _follow(self) -> None:
        for half in self.sums:
            half.follow(self.groups)
