"""Which entries are trained, given the scores of all: exact counts, and ties that fall the same way on every machine.

Of equal scores the lower index comes first, and of tensors the one that was given first.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.errors import HoldfastError


def counts(sizes: Mapping[str, int], density: float, count: int | None = None) -> dict[str, int]:
    """How many entries each tensor gets where tensors do not compete.

    A share of each, rounded, at least one; or `count` in all, in proportion to size by largest remainders.

    Raises:
        HoldfastError: more entries than there are.
    """
    if count is None:
        return {name: min(size, max(1, round(density * size))) for name, size in sizes.items()}
    whole = total(sizes, density, count)
    everything = sum(sizes.values())
    found = {name: whole * size // everything for name, size in sizes.items()}
    left = sorted(sizes, key=lambda name: -(whole * sizes[name] % everything))  # stable: the first of equal ones
    for name in left[: whole - sum(found.values())]:
        found[name] += 1
    return found


def total(sizes: Mapping[str, int], density: float, count: int | None = None) -> int:
    """How many entries there are in all where tensors compete.

    Raises:
        HoldfastError: more entries than there are, or none.
    """
    everything = sum(sizes.values())
    wanted = max(1, round(density * everything)) if count is None else count
    if not 0 < wanted <= everything:
        raise HoldfastError(
            f"{wanted:,} entries are to be trained of {everything:,}",
            wanted="at least one, and no more than there are",
        )
    return wanted


def top(scores: Tensor, count: int) -> Tensor:
    """Ascending int64 indices (count,) of the highest of a vector of scores; of equal ones, the first.

    By the threshold: `topk` alone picks among equal scores as it likes.
    """
    if count == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    least = scores.topk(count, sorted=False).values.min()
    above = scores > least
    room = count - int(above.count_nonzero())  # `sum` would make a copy of eight bytes for each entry
    equal = (scores == least).nonzero().view(-1)[:room]
    return torch.cat([above.nonzero().view(-1), equal]).sort().values


def top_rows(matrix: Tensor, count: int) -> Tensor:
    """Ascending flat indices, as the tensor is stored, of the highest scores of each row; `count` in all.

    Every row gets count // rows. What is left over goes to the rows whose next score is the highest.

    Args:
        matrix: (rows, columns), a view of scores that are stored as the weight is: its strides tell where.
        count: of entries in all rows together.
    """
    rows = len(matrix)
    each, over = divmod(count, rows)
    extra = torch.zeros(rows, dtype=torch.int64, device=matrix.device)
    if over:
        following = matrix.topk(each + 1, dim=1).values[:, each]
        extra[top(following, over)] = 1
    picked = _each_row(matrix, each) if each else torch.zeros_like(matrix, dtype=torch.bool)
    if over:
        chosen = extra.nonzero().view(-1)
        picked[chosen] = _each_row(matrix[chosen], each + 1)
    row, column = picked.nonzero(as_tuple=True)
    return (row * matrix.stride(0) + column * matrix.stride(1)).sort().values


def _each_row(matrix: Tensor, each: int) -> Tensor:
    """(rows, columns) bool: the `each` highest of every row, the first of equal ones."""
    least = matrix.topk(each, dim=1, sorted=False).values.min(dim=1, keepdim=True).values
    above, equal = matrix > least, matrix == least
    room = each - above.sum(dim=1, keepdim=True, dtype=torch.int32)
    return above | (equal & (equal.cumsum(dim=1, dtype=torch.int32) <= room))


@dataclass
class _Candidates:
    """Entries of one tensor: ascending indices, scores, and whether its floor holds them whatever others score."""

    indices: Tensor
    scores: Tensor
    payload: Tensor | None
    safe: Tensor

    def keep(self, where: Tensor) -> None:
        self.indices, self.scores, self.safe = self.indices[where], self.scores[where], self.safe[where]
        self.payload = None if self.payload is None else self.payload[where]


class Competition:
    """The K highest scores over all tensors, seen one after another, with a least and a most for each: exact.

    A tensor's share of any best choice is a first part of its own order, so the best under both bounds is: each
    tensor's floor, then the highest of what is left below the ceilings. Only what can still win is held, at most
    2 K entries beside those of one tensor; nothing is sorted over all entries.

    Args:
        sizes: of all tensors that will be added.
        entries: K.
        floor, ceiling: the least and the most share of one tensor, rounded down to entries (the ceiling to no fewer
            than one).

    Raises:
        HoldfastError: bounds that K entries can't meet.
    """

    def __init__(self, sizes: Mapping[str, int], entries: int, floor: float = 0.0, ceiling: float = 1.0) -> None:
        self.least = {name: _whole(floor * size) for name, size in sizes.items()}
        self.most = {name: max(1, _whole(ceiling * size)) for name, size in sizes.items()}
        lowest, highest = sum(self.least.values()), sum(self.most.values())
        if not (0.0 <= floor <= ceiling <= 1.0 and lowest <= entries <= highest):
            raise HoldfastError(
                f"{entries:,} entries with at least {floor:.3%} and at most {ceiling:.3%} of each tensor",
                wanted=f"0 <= floor <= ceiling <= 1, and {lowest:,} to {highest:,} entries under these bounds",
                remedy="change density (or count), floor or ceiling",
            )
        self.open = entries - lowest  # entries that are competed for
        self.entries = entries
        self._held: dict[str, _Candidates] = {}

    def add(self, name: str, scores: Tensor, payload: Tensor | None = None) -> None:
        """Let a tensor's scores (numel,) compete; `payload` (numel,) is carried along for the winners."""
        least, most = self.least[name], min(self.most[name], self.least[name] + self.open, scores.numel())
        indices = top(scores, most)
        own = scores[indices]
        safe = torch.zeros(most, dtype=torch.bool, device=scores.device)
        safe[top(own, least)] = True
        self._held[name] = _Candidates(indices, own, None if payload is None else payload[indices], safe)
        if sum(len(one.indices) for one in self._held.values()) > 2 * self.entries:
            self._trim()

    def winners(self) -> dict[str, tuple[Tensor, Tensor | None]]:
        """name -> ascending flat indices (k,) and their payload; k of all tensors add up to K."""
        self._trim()
        return {name: (one.indices, one.payload) for name, one in self._held.items()}

    def _trim(self) -> None:
        """Drop what can't win any more: what is not among the open places' highest so far."""
        held = self._held.values()
        device = next(iter(held)).scores.device
        competing = torch.cat([one.scores[~one.safe].to(device) for one in held])
        won = torch.zeros(len(competing), dtype=torch.bool, device=device)
        won[top(competing, min(self.open, len(competing)))] = True
        start = 0
        for one in held:
            where = one.safe.clone()
            end = start + int((~one.safe).sum())
            where[~one.safe] = won[start:end].to(where.device)
            one.keep(where)
            start = end


def _whole(entries: float) -> int:
    """Rounded down, where 0.29 * 100 is 29."""
    return int(entries + 1e-6)
