"""Processes that measure together: who is here, how they keep in step, and what passes between them.

Every transfer is announced by an exchange of a few numbers in which all ranks take part, whatever each is doing. A
rank that is through with its share, or has failed, goes on answering until all are done: so none waits forever.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor

from holdfast.errors import HoldfastError
from holdfast.statistics import GradientsHiddenError, InputsDivergedError

FIELDS = 8  # numbers in a message: what it is, and up to seven more
WELL, FAILED = 0, 3
COMMON = {1: GradientsHiddenError, 2: InputsDivergedError}  # what all ranks answer in the same way


class Op(IntEnum):
    """What a rank says."""

    DONE = 0  # its share of the round is over: how it went, and numbers about it
    DRAWN = 1  # how many random numbers it draws in order
    ROWS = 2  # the statistic that it has rows for


class PeerError(HoldfastError):
    """Another rank failed."""


class Ranks:
    """The ranks of torch.distributed, or this process alone.

    Attributes:
        rank, world: which of how many.
        carry: called after each exchange with what every rank said and with this rank's parcel.
        skip: called by a rank that draws nothing itself, with how many numbers the others draw.
    """

    def __init__(self, rank: int = 0, world: int = 1, control: Any = None, direct: bool = False) -> None:
        self.rank, self.world = rank, world
        self.carry: Callable[[list[list[int]], Any], None] | None = None
        self.skip: Callable[[int], None] | None = None
        self._control = control  # gloo: messages and tensors in the CPU's memory
        self._direct = direct  # whether tensors go from accelerator to accelerator

    @classmethod
    @contextmanager
    def present(cls) -> Iterator[Self]:
        """All ranks of the default group, where torch.distributed is initialised."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            yield cls()
            return
        plain = dist.get_backend() == "gloo"
        control = None if plain else dist.new_group(backend="gloo")
        direct = not plain and "nccl" in str(dist.get_backend_config())
        try:
            yield cls(dist.get_rank(), dist.get_world_size(), control, direct)
        finally:
            if control is not None:
                dist.destroy_process_group(control)

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def exchange(self, op: Op, *numbers: int, parcel: Any = None) -> list[list[int]]:
        """Tell all ranks something and hear what they say: op and numbers of each, by rank."""
        said = self._told(op, *numbers)
        if self.carry is not None:
            self.carry(said, parcel)
        return said

    def _told(self, op: Op, *numbers: int) -> list[list[int]]:
        mine = [int(op), *numbers, *[0] * (FIELDS - 1 - len(numbers))]
        if self.world == 1:
            return [mine]
        said = [torch.empty(FIELDS, dtype=torch.int64) for _ in range(self.world)]
        try:
            dist.all_gather(said, torch.tensor(mine, dtype=torch.int64), group=self._control)
        except RuntimeError as error:
            raise PeerError(f"another rank is gone: {error}") from error
        return [one.tolist() for one in said]

    def turn(self, count: int) -> tuple[int, int]:
        """This rank draws so many numbers in order: how many do the ranks before it draw, and those after it?"""
        while True:
            said = self.exchange(Op.DRAWN, count)
            if not _underway(said):
                counts = [one[1] if one[0] == Op.DRAWN else 0 for one in said]
                return sum(counts[: self.rank]), sum(counts[self.rank + 1 :])

    def together(self, work: Callable[[], Sequence[int]]) -> list[list[int]]:
        """Each rank's share of a round; the numbers that every rank's share came to, by rank.

        Raises:
            PeerError: another rank failed. What a layer does that asks for another way of watching it, and what
                failed here, is raised as it is.
        """
        if self.world == 1:
            return [list(work())]
        error: BaseException | None = None
        numbers: Sequence[int] = ()
        try:
            numbers = work()
        except BaseException as raised:
            error = raised
        while True:
            said = self._told(Op.DONE, _outcome(error), *numbers)
            try:
                self._answer(said)
            except Exception as raised:  # a sum that is kept here would not take another rank's rows
                error = error or raised
            if all(op == Op.DONE for op, *_ in said):
                break
        worst = max(outcome for _, outcome, *_ in said)
        if worst == FAILED:
            self._fail(error)
        if worst in COMMON:
            raise error or COMMON[worst]("layers of another rank are called in other ways")
        return [one[2:] for one in said]

    def _answer(self, said: list[list[int]]) -> None:
        """Do what ranks that are still at work need of this one."""
        if self.carry is not None:
            self.carry(said, None)
        drawn = 0 if _underway(said) else sum(one[1] for one in said if one[0] == Op.DRAWN)
        if drawn and self.skip is not None:
            self.skip(drawn)

    def _fail(self, error: BaseException | None) -> None:
        told = self.gathered(None if error is None else f"{type(error).__name__}: {error}")
        if error is not None:
            raise error
        rank, text = next((rank, text) for rank, text in enumerate(told) if text is not None)
        raise PeerError(f"rank {rank} failed: {text}")

    def gathered(self, value: Any) -> list[Any]:
        """Every rank's value, by rank."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value, group=self._control)
        return found

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all ranks."""
        if self.world == 1:
            return
        total = tensor.contiguous()
        dist.all_reduce(total, group=None if total.is_cuda else self._control)
        if total is not tensor:
            tensor.copy_(total)

    def give(self, to: int, about: Any, tensors: Sequence[Tensor], *, resting: bool = False) -> None:
        """Send tensors to a rank that takes them; `resting`: from the CPU's memory to the CPU's memory."""
        described = [(tuple(t.shape), t.dtype, self._direct and t.is_cuda and not resting) for t in tensors]
        dist.send_object_list([(about, described)], dst=to, group=self._control)
        for tensor, (*_, direct) in zip(tensors, described, strict=True):
            if tensor.numel():
                sent = _bytes(tensor.detach() if direct else tensor.detach().cpu())
                dist.send(sent, dst=to, group=None if direct else self._control)

    def take(self, source: int, device: torch.device | str) -> tuple[Any, list[Tensor]]:
        """What a rank gives, on this device."""
        told: list[Any] = [None]
        dist.recv_object_list(told, src=source, group=self._control)
        about, described = told[0]
        tensors = []
        for shape, dtype, direct in described:
            tensor = torch.empty(shape, dtype=dtype, device=_landing(device) if direct else "cpu")
            if tensor.numel():
                dist.recv(_bytes(tensor), src=source, group=None if direct else self._control)
            tensors.append(tensor.to(device))
        return about, tensors

    def moved(self, state: dict[str, Tensor] | None, source: int, to: int) -> dict[str, Tensor] | None:
        """One rank's tensors in the CPU's memory of another; None on all that they do not come to.

        All ranks may call it. Where source and destination are one, they stay where they are.
        """
        if source == to:
            return state if self.rank == to else None
        if self.rank == source:
            assert state is not None
            self.give(to, list(state), list(state.values()), resting=True)
        if self.rank != to:
            return None
        names, tensors = self.take(source, "cpu")
        return dict(zip(names, tensors, strict=True))

    def spread(self, state: dict[str, Tensor] | None, source: int) -> dict[str, Tensor]:
        """One rank's tensors on all of them, in the CPU's memory."""
        told: list[Any] = [None]
        if self.rank == source:
            assert state is not None
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            told = [{name: (tuple(tensor.shape), tensor.dtype) for name, tensor in state.items()}]
        dist.broadcast_object_list(told, src=source, group=self._control)
        state = state or {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in told[0].items()}
        for tensor in state.values():
            if tensor.numel():
                dist.broadcast(_bytes(tensor), src=source, group=self._control)
        return state


def _underway(said: list[list[int]]) -> bool:
    """Whether some rank has not come to its draws yet: layers may run more often on it than on others."""
    return any(op == Op.ROWS for op, *_ in said)


def _outcome(error: BaseException | None) -> int:
    if error is None:
        return WELL
    return next((code for code, kind in COMMON.items() if isinstance(error, kind)), FAILED)


def _landing(device: torch.device | str) -> torch.device:
    """Where NCCL puts what goes on to this device: it writes to no CPU's memory."""
    wanted = torch.device(device)
    return wanted if wanted.type == "cuda" else torch.device("cuda", torch.cuda.current_device())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def different_data() -> HoldfastError:
    """The error for ranks that do not see the same source."""
    return HoldfastError(
        "the ranks were given different source data",
        wanted="the same batches in the same order on every rank: each then works on a share of its own",
        causes=["a DataLoader that shuffles without a seed", "a DistributedSampler"],
        remedy="pass the whole source on every rank, in one order",
    )
