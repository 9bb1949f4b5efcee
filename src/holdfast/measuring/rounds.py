"""One pass over source data, in rounds: a batch for every rank, then a look at whether it is enough."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import asdict
from functools import partial
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor

from holdfast.batches import to_device
from holdfast.errors import HoldfastError
from holdfast.layers import device_of
from holdfast.likelihood import Items, LabelSampler
from holdfast.measuring.halves import Halves, Make
from holdfast.measuring.measurement import Summation, Watch, digest
from holdfast.measuring.ranks import PeerError, Ranks, different_data
from holdfast.measuring.resuming import Checkpoint, Deferred
from holdfast.measuring.sharding import Post
from holdfast.measuring.stopping import Extent, Progress
from holdfast.progress import counted
from holdfast.statistics import GradientsHiddenError, InputsDivergedError

Saved = tuple[dict[str, Any], dict[str, Tensor]]


class Pass:
    """Fills sums from a source.

    Args:
        reader: of the batches.
        make: empty sums, watched in some way and sent by some post.
        batches: the same on every rank, in the same order.
        ranks: that share the work.
        extent: when it is enough.
        seed: of drawn labels.
        watch: how the model is watched at first.
        owners: layer -> the rank that holds its sums; None: each rank sums what it sees.
        checkpoint: where to write the sums now and then.
        number: which pass over the data this is.
        shown: a progress bar.
    """

    def __init__(
        self,
        reader: Items,
        make: Make,
        batches: Iterable[Any],
        ranks: Ranks,
        extent: Extent,
        *,
        seed: int,
        watch: Watch,
        owners: Mapping[str, int] | None = None,
        checkpoint: Checkpoint | None = None,
        number: int = 1,
        shown: bool = True,
    ) -> None:
        self.reader, self.make, self.batches, self.ranks, self.extent = reader, make, batches, ranks, extent
        self.seed, self.owners, self.checkpoint, self.number, self.shown = seed, owners, checkpoint, number, shown
        self.watch = watch
        self.progress = Progress()
        self._source: Iterator[Any] = iter(())
        self._again: list[Any] | None = None  # batches that were taken and not yet summed, when starting over
        self._deferred = Deferred(checkpoint is not None)

    def run(self) -> Summation:
        """The sums over all that was read: on every rank, or, with owners, each on its owner.

        Raises:
            HoldfastError: a source that has to be read again and can't be, ranks with other data, or a checkpoint of
                something else.
        """
        saved = self._saved()
        self.complete = bool(saved and saved[0]["complete"])  # in an earlier run
        while True:
            try:
                self._start(saved)
                if not self.complete:
                    self._read()
                return self.halves.whole(sum(self.progress.items))
            except (InputsDivergedError, GradientsHiddenError) as error:
                self.watch, saved, self.complete = self.watch.after(error), None, False
                self._rewind(error)

    def _start(self, saved: Saved | None) -> None:
        """Empty sums, or those of a checkpoint."""
        if saved:
            self.watch = Watch(saved[0]["share"], saved[0]["stems"], saved[0]["groups"])
        post = None if self.owners is None else Post(self.ranks, self.owners, device_of(self.reader.model))
        made = [self.make(self.watch, post) for _ in range(1 if self.extent.until is None else 2)]
        self.sampler = LabelSampler(self.seed)
        self.sampler.turn, self.ranks.skip = self.ranks.turn, self.sampler.skip
        self.halves = Halves(made, self.sampler, self.ranks, self.owners, self.watch.groups)
        self.digest, self.progress = hashlib.sha256(), Progress()
        self._source = iter(self.batches) if self._again is None else chain(self._again, self._source)
        self._between = True  # no batch is summed by half
        if saved:
            self._resume(*saved)

    def _rewind(self, error: Exception) -> None:
        """To the beginning of the data."""
        if self.progress.batches == 0:
            self._again = self._chunk
        elif isinstance(self.batches, Iterator):
            raise HoldfastError(
                f"the source has to be read again from its beginning, and it can be read only once: {error}",
                causes=["layers that were given one and the same input at first were given different ones later"],
                remedy="pass a list of batches, a DataLoader or a dataset instead of a generator",
            ) from error
        else:
            self._again = None

    def _read(self) -> None:
        done = self.progress
        left = -(-(len(self.batches) - done.batches) // self.ranks.world) if isinstance(self.batches, Sized) else None
        limit, before, shown = self.extent.max_items, sum(done.items), self.shown and self.ranks.first
        try:
            with counted("anchor", left, limit=limit, before=before, shown=shown) as advance:
                while self._round(advance):
                    self._let_go()
                self._let_go()
        except (InputsDivergedError, GradientsHiddenError):
            raise
        except BaseException:
            if self.checkpoint is not None and self._between and self.ranks.world == 1:
                self.save()
            raise
        self.extent.report(done, self.halves)

    def _round(self, advance: Callable[[int], object]) -> bool:
        """A batch for every rank; whether there may be more."""
        done = self.progress
        with self._deferred:
            accepted = self._accepted(self.ranks.together(self._take))
            if not accepted:
                return False
            said = self.ranks.together(partial(self._add, accepted))
            for batch in self._chunk[:accepted]:
                digest(self.digest, batch)
            items = sum(one[0] for one in said)
            done.items[done.rounds % len(self.halves.sums)] += items
            done.rounds, done.batches = done.rounds + 1, done.batches + accepted
            self._between = True
        advance(items)
        self.halves.align([one[1] for one in said])
        stopped = self.ranks.world > 1 and any(one[2] for one in said)
        if stopped or any(one[3] for one in said):
            self.save()
        if stopped:
            self._deferred.release()
            raise PeerError("another rank was interrupted", remedy="run it again with the same checkpoint")
        return not self.extent.enough(done, self.halves) and accepted == len(self._chunk)

    def _let_go(self) -> None:
        """Let a signal act that was held back; ranks first tell each other of it."""
        if self.ranks.world == 1:
            self._deferred.release()

    def _take(self) -> tuple[int, int, int]:
        """This round's batches: how many, a mark of all that came before, and the items of this rank's own."""
        self._chunk = list(islice(self._source, self.ranks.world))
        self._counts: list[int | None] = [None] * len(self._chunk)
        own, rank = 0, self.ranks.rank
        if self.extent.max_items is not None and self.ranks.world > 1:
            self._counts = [self.reader.items_in(batch) for batch in self._chunk]
            if rank < len(self._chunk) and self._counts[rank] is None:
                with (
                    torch.no_grad()
                ):  # nothing but a forward pass tells, and what is over the limit must not be summed
                    own = self.reader.read(to_device(self._chunk[rank], device_of(self.reader.model))).items
        return len(self._chunk), int.from_bytes(self.digest.digest()[:7]), own

    def _accepted(self, said: list[list[int]]) -> int:
        """How many of this round's batches are within the limit."""
        if len({(count, mark) for count, mark, *_ in said}) > 1:
            raise different_data()
        limit, total, accepted = self.extent.max_items, sum(self.progress.items), 0
        for count, (_, _, told, *_) in zip(self._counts, said, strict=False):
            if limit is not None and total >= limit:
                break
            total += told if count is None else count
            accepted += 1
        return accepted

    def _add(self, accepted: int) -> tuple[int, int, int, int]:
        """This rank's batch, if there is one: its items, a mark of what shares, and what else all must know."""
        half, rank = self.halves.of_round(self.progress.rounds), self.ranks.rank
        before, mark = half.items, 0
        if rank < accepted:
            self._between = False
            half.add(self._chunk[rank], self.progress.batches + rank)
            mark = self.halves.mark(half)
        due = self.checkpoint is not None and self.ranks.first and self.checkpoint.due
        return half.items - before, mark, int(self._deferred.caught is not None), int(due)

    def save(self, *, complete: bool = False) -> None:
        """Write the checkpoint; all ranks must call it. `complete`: the pass is over and its sums are whole."""
        about = asdict(self.progress) | {
            "complete": complete,
            "digest": self.digest.hexdigest(),
            "drawn": self.sampler.drawn,
            "share": self.watch.share,
            "stems": self.watch.stems,
            "groups": self.halves.groups,
            "item": self.reader.item,
        }
        tensors = self.halves.stored(complete=complete)

        def write() -> tuple[()]:
            if self.checkpoint is not None and self.ranks.first:
                self.checkpoint.write(self.number, about, tensors)
            return ()

        self.ranks.together(write)

    def _saved(self) -> Saved | None:
        """What the checkpoint holds of this pass; the tensors on rank 0 alone."""
        found: list[Saved | None] = [None]

        def read() -> tuple[()]:
            if self.checkpoint is not None and self.ranks.first:
                found[0] = self.checkpoint.read(self.number)
            return ()

        self.ranks.together(read)
        about = self.ranks.gathered(found[0] and found[0][0])[0]
        return None if about is None else (about, found[0][1] if found[0] else {})

    def _resume(self, about: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on behind the batches that were summed, which must be the source's first."""
        self.progress = Progress(**{name: about[name] for name in asdict(self.progress)})
        self.halves.take_in(tensors)
        self.sampler.skip(about["drawn"])
        self.reader.item = about["item"]

        def pass_by() -> tuple[()]:
            for batch in islice(self._source, self.progress.batches):
                digest(self.digest, batch)
            if self.checkpoint is not None and self.digest.hexdigest() != about["digest"]:
                raise self.checkpoint.other_data()
            return ()

        self.ranks.together(pass_by)
