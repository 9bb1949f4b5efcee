"""Curvatures from source data: passes over it, once or twice, in one process or several."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from holdfast.curvature.curvature import Curvature
from holdfast.curvature.statistic import LayerSize, Reading
from holdfast.errors import HoldfastError
from holdfast.likelihood import Items
from holdfast.measuring.measurement import Measurement, Sampling, Summation, Watch
from holdfast.measuring.ranks import Ranks, different_data
from holdfast.measuring.resuming import Checkpoint, identity
from holdfast.measuring.rounds import Pass
from holdfast.measuring.sharding import check_shardable, finished, groups_in, owners_of
from holdfast.measuring.stopping import Extent


@dataclass(frozen=True)
class Measured:
    """What was measured, and on what.

    Attributes:
        curvatures: of every layer; with sharding none on ranks other than 0.
        items: scored.
        data_sha256: of the batches.
        agreement: relative standard error of q along leading directions, where the halves were compared
            (`holdfast.measuring.agreement`); of two passes the larger.
    """

    curvatures: dict[str, Curvature]
    items: int
    data_sha256: str
    agreement: float | None


@dataclass
class _Task:
    """What the passes over the data have in common."""

    reader: Items
    layers: Any
    sizes: dict[str, LayerSize]
    reading: Reading
    sampling: Sampling
    by: Any
    ranks: Ranks
    groups: dict[str, str] | None = None
    owners: dict[str, int] | None = None

    def empty(self, kind: type[Curvature], first: dict[str, Curvature] | None, watch: Any, post: Any) -> Summation:
        """Sums to fill."""
        return self.by(
            self.reader, self.layers, self.sizes, kind, self.reading, self.sampling, first, watch=watch, post=post
        )

    def curvatures(self, summed: Summation) -> dict[str, Curvature]:
        """Of all layers, or of those that this rank owns."""
        owners, found = self.owners, {}
        own = None if owners is None else [layer for layer in owners if owners[layer] == self.ranks.rank]

        def make() -> tuple[()]:
            found.update(summed.curvatures(own, last=True))
            return ()

        self.ranks.together(make)
        return found


def measure(
    reader: Items,
    layers: Mapping[str, Any],
    sizes: dict[str, LayerSize],
    kind: type[Curvature],
    batches: Iterable[Any],
    *,
    reading: Reading,
    sampling: Sampling,
    max_items: int | None = None,
    until: float | None = None,
    checkpoint: Path | None = None,
    shard: bool = False,
    progress: bool = True,
    by: Any = Measurement,
) -> Measured:
    """The curvature of every layer, and what it was measured on.

    `by` is what sums, and says what `layers` are. A kind that comes `after` another takes two passes, over the same
    batches with the same drawn labels; with `until` each goes on until its own sums are stable. The ranks of
    torch.distributed share the batches. See `Anchor.estimate` for the options.

    Raises:
        HoldfastError: no scored item, a layer that no item depends on, data that can be read only once but must be
            read twice, ranks with different data, a rank that failed, or a checkpoint of something else.
    """
    kinds = [kind] if kind.after is None else [kind.after, kind]
    if len(kinds) > 1 and isinstance(batches, Iterator):
        raise HoldfastError(
            f"curvature {kind.kind!r} reads the source twice, and this one is used up after one pass",
            remedy="pass a list of batches, a DataLoader or a dataset instead of a generator",
        )
    if shard:
        _check_shard(kinds, by)
    extent, first, passes = Extent(max_items, until), None, []
    with Ranks.present() as ranks:
        task = _Task(reader, layers, sizes, reading, sampling, by, ranks)
        stored = None if checkpoint is None else _opened(checkpoint, task, _settings(task, kind, extent, shard))
        if shard and ranks.world > 1:
            batches = _share_out(task, kinds, batches)
        for number, one in enumerate(kinds, start=1):
            # What a second pass turns into is measured by rows: by sequences, most of its directions are undecided.
            task.reading = reading if one is kind else replace(reading, per="token")
            walk = Pass(
                reader,
                partial(task.empty, one, first),
                batches,
                ranks,
                extent,
                seed=sampling.seed,
                watch=Watch(stems=_repacked(task.layers), groups=task.groups),
                owners=task.owners,
                checkpoint=stored,
                number=number,
                shown=progress,
            )
            summed = walk.run()
            _check_read(walk)
            if stored is not None and one is not kind and not walk.complete:
                walk.save(complete=True)
            first = task.curvatures(summed)
            passes.append(walk)
        assert first is not None
        curvatures = first if task.owners is None else finished(first, task.owners, kind, ranks)
        if stored is not None and ranks.first:
            stored.remove()
    found = [walk.progress.agreement for walk in passes]
    known = [one for one in found if one is not None]
    last = passes[-1]
    return Measured(curvatures, sum(last.progress.items), last.digest.hexdigest(), max(known, default=None))


def _opened(folder: Path, task: _Task, settings: dict[str, Any]) -> Checkpoint:
    found: list[Checkpoint] = []

    def make() -> tuple[()]:
        found.append(Checkpoint(folder, settings, writes=task.ranks.first))
        return ()

    task.ranks.together(make)
    return found[0]


def _check_shard(kinds: Sequence[type[Curvature]], by: type) -> None:
    for kind in kinds:
        check_shardable(kind)
    if not issubclass(by, Measurement):
        raise HoldfastError(
            "shard=True spreads the sums of layers over ranks, and these are sums over plain parameters",
            remedy="leave shard off: an adapter's own parameters are small",
        )


def _repacked(layers: Mapping[str, Any]) -> bool:
    """Whether a layer may change its weight for good when its input needs no gradient.

    bitsandbytes packs 4-bit weights anew in such forward passes on CPUs, and gives no gradients from then on.
    """
    weights = [weight for layer in layers.values() if isinstance(weight := getattr(layer, "weight", None), Tensor)]
    return any(not weight.is_floating_point() and weight.device.type == "cpu" for weight in weights)


def _share_out(task: _Task, kinds: Sequence[type[Curvature]], batches: Iterable[Any]) -> Iterable[Any]:
    """Settle which rank holds which sums, seen on the first batch; returns batches that still hold it."""
    source = iter(batches)

    def look() -> tuple[()]:
        first = list(islice(source, 1))
        seen.extend(first)
        task.groups = groups_in(task.reader, task.layers, first[0]) if first else {}
        return ()

    seen: list[Any] = []
    task.ranks.together(look)
    task.owners = owners_of(task.groups or {}, task.sizes, kinds, task.reading, task.ranks.world)
    return chain(seen, source) if isinstance(batches, Iterator) else batches


def _check_read(walk: Pass) -> None:
    if len(set(walk.ranks.gathered(walk.digest.hexdigest()))) > 1:
        raise different_data()
    if not sum(walk.progress.items):
        raise HoldfastError(
            "the source data has no scored item",
            causes=["the iterable is empty or was already used up", "every label is -100 or padding"],
            remedy="pass batches with input_ids and, where only part is scored, labels",
        )


def _settings(task: _Task, kind: type[Curvature], extent: Extent, shard: bool) -> dict[str, Any]:
    """What decides the sums, for a checkpoint to compare."""
    reading = {name: str(value) for name, value in vars(task.reading).items() if name not in ("offload", "halves")}
    layers = {n: [s.out, s.inn, s.inputs.name, s.gradients.name] for n, s in task.sizes.items()}
    loss: Any = task.reader.forward_loss
    return {
        "curvature": kind.kind,
        **reading,
        **asdict(task.sampling),
        **asdict(extent),
        "ranks": task.ranks.world,
        "shard": shard,
        "forward_loss": None if loss is None else getattr(loss, "__qualname__", type(loss).__qualname__),
        "layers": layers,
        "weights": identity(task.reader.model),
    }
