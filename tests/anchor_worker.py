"""Anchors of several processes held against those of one, case by case, in float64.

Run it as: torchrun --nproc_per_node 2 anchor_worker.py OUT.json [CASE ...]
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from laws import dense, drawn
from networks import NETWORKS, Batch
from sometimes import EXPERTS
from torch import nn

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.curvature.curvature import Coupled
from holdfast.measuring import rounds
from holdfast.measuring.accumulation import parts
from holdfast.measuring.measurement import Summation
from holdfast.shifts.dense import Dense

torch.set_num_threads(1)  # tensors this small are slower on two threads, which spin
KINDS = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
SHARDABLE = [kind for kind in KINDS if not issubclass(catalogue.curvature(kind), Coupled)]


def case(network: str, size: int = 1, count: int | None = None, **options: Any) -> dict[str, Any]:
    """Some batches of a network, and how they are measured."""
    return {"network": network, "size": size, "count": count, "options": options}


CASES: dict[str, dict[str, Any]] = {
    **{f"{kind} llama": case("llama", curvature=kind) for kind in KINDS},
    **{f"{kind} shard": case("llama", curvature=kind, shard=True) for kind in SHARDABLE},
    "padded rows": case("llama", 2),
    "one batch for two ranks": case("llama", 5),
    "one batch for two ranks, shard": case("llama", 5, shard=True),
    "three batches": case("bert-tokens", 2, curvature="eigen"),
    "embedding, shard": case("gpt2", 2, curvature="kronecker", shard=True),
    "limit": case("llama", max_items=5),
    "limit of the first round": case("llama", max_items=1),
    "limit in another process": case("llama", curvature="diagonal", max_items=8, fisher="data"),
    "no names": case("mlp", 2, curvature="diagonal"),
    "no names, two draws": case("mlp", 1, draws=2),
    "no names, exact": case("mlp", 2, fisher="exact"),
    "no names, shard": case("mlp", 2, curvature="eigen", shard=True),
    "no names, limit": case("mlp", 2, max_items=3),
    "fraction": case("llama", 2, curvature="diagonal", fraction=0.5),
    "sequences": case("llama", 2, curvature="kronecker", per="sequence"),
    "sequences, shard": case("llama", 2, curvature="diagonal", per="sequence", shard=True),
    "a layer called twice": case("twice", 1, curvature="kronecker"),
    "a layer called twice, shard": case("twice", 1, curvature="diagonal", per="sequence", shard=True),
    "experts of one rank at a time": case("experts", 2),
    "experts of one rank at a time, shard": case("experts", 2, shard=True),
    "experts, eigen": case("experts", 2, shard=True, curvature="eigen"),
    "stems": case("reentrant", 1, curvature="kronecker"),
    "convolutions": case("conv2d", 1, curvature="kronecker", shard=True),
    "until": case("llama", 1, until=1e-9),
    "until, shard": case("llama", 1, until=1e-9, shard=True, curvature="eigen"),
}


def measured(one: dict[str, Any]) -> Anchor:
    """The case's anchor, by however many processes there are."""
    network = (NETWORKS | {EXPERTS.name: EXPERTS})[one["network"]]
    batches = network.batches(one["size"])[: one["count"]]
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | one["options"]
    return Anchor.estimate(network.build(), batches, **options)


def distance(got: Anchor, wanted: Anchor) -> float:
    """The largest difference of the forms' entries, relative to the largest of their layer; and of a coupled q."""
    assert list(got.curvatures) == list(wanted.curvatures)
    found = []
    for name, curvature in wanted.curvatures.items():
        form = dense(curvature)
        found.append(float((dense(got.curvatures[name]) - form).abs().max() / form.abs().max()))
    kind: Any = type(next(iter(wanted.curvatures.values())))
    if issubclass(kind, Coupled):  # what lies between layers
        shifts = {name: Dense(drawn(7, *curvature.shape)) for name, curvature in wanted.curvatures.items()}
        one, other = (float(kind.joint(anchor.curvatures, shifts)) for anchor in (got, wanted))
        found.append(abs(one - other) / abs(other))
    return max(found)


def held() -> tuple[Callable[[], list[int]], Callable[[], None]]:
    """Watch how many numbers of sums this rank holds at the end of each pass."""
    counts: list[int] = []
    run = rounds.Pass.run

    def watched(self: rounds.Pass) -> Summation:
        summed = run(self)
        states = [statistic.state() for statistic in parts(summed.sums).values()]
        counts.append(
            sum(t.numel() for state in states for name, t in state.items() if name not in ("rows", "counted"))
        )
        return summed

    rounds.Pass.run = watched  # type: ignore[method-assign]
    return (lambda: counts), (lambda: setattr(rounds.Pass, "run", run))


def compare(name: str, alone: Anchor) -> dict[str, Any]:
    """One case: how far every rank's anchor is from one process's, and what each rank held."""
    one = CASES[name]
    counts, restore = held()
    try:
        got = measured(one)
    finally:
        restore()
    gathered = one["options"].get("shard") and dist.get_rank() > 0
    mine = {
        "distance": None if gathered else distance(got, alone),
        "layers": len(got.curvatures),
        "items": got.items == alone.items,
        "data": got.facts["data_sha256"] == alone.facts["data_sha256"],
        "numbers": counts(),
    }
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine)
    return {"ranks": ranks}


def refused(work: Callable[[], Any]) -> list[str]:
    """Every rank's error."""
    try:
        work()
        said = ""
    except (Exception, KeyboardInterrupt) as error:
        said = f"{type(error).__name__}: {error}"
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, said)
    return ranks


def failing(at: str) -> Callable[[nn.Module, Batch], Any]:
    """A loss that fails on rank 1 in its second batch: before the model ran, or amid the backward pass."""
    network = NETWORKS["mlp"]
    calls = [0]

    def loss(model: nn.Module, batch: Batch) -> Any:
        calls[0] += 1
        logits, labels = network.forward_loss(model, batch)
        if dist.get_rank() == 1 and calls[0] == 2:
            if at == "forward":
                raise ZeroDivisionError("in the loss")
            logits.register_hook(lambda _: 1 // 0)
        return logits, labels

    return loss


def failures() -> dict[str, list[str]]:
    """What goes wrong on one rank is an error on all, and none waits."""
    network = NETWORKS["mlp"]

    def run(source: Any, loss: Any = network.forward_loss, **options: Any) -> Anchor:
        return Anchor.estimate(network.build(), source, forward_loss=loss, fisher="data", progress=False, **options)

    batches = network.batches(1)
    found = {}
    for at in ("forward", "backward"):
        for shard in (False, True):
            loss = failing(at)
            found[f"{at}, shard={shard}"] = refused(lambda loss=loss, shard=shard: run(batches, loss, shard=shard))
    mine = batches[dist.get_rank() :]
    found["other data"] = refused(lambda: run(mine))
    found["fewer data"] = refused(lambda: run(batches[: 2 + 2 * dist.get_rank()]))
    found["no data"] = refused(lambda: run([]))
    found["broken batch"] = refused(lambda: run([*batches[:3], {"x": "nothing"}]))
    found["after it all"] = refused(lambda: run(batches))
    return found


def resumed(folder: str, **options: Any) -> dict[str, Any]:
    """Interrupted on rank 1 in its second batch, and gone on with."""
    network, calls = NETWORKS["mlp"], [0]

    def loss(model: nn.Module, batch: Batch) -> Any:
        calls[0] += 1
        if dist.get_rank() == 1 and calls[0] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return network.forward_loss(model, batch)

    def run() -> Anchor:
        given = {"forward_loss": loss, "checkpoint": folder, "progress": False} | options
        return Anchor.estimate(network.build(), network.batches(1), **given)

    said = refused(run)
    stored = Path(folder).exists()
    dist.barrier()
    batches = calls[0]
    got = run()
    dist.barrier()
    mine = {"got": distance(got, ALONE[folder]) if got.curvatures else None, "batches": calls[0] - batches}
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, mine | {"stored": stored, "removed": not Path(folder).exists()})
    return {"said": said, "ranks": ranks}


RESUMED: dict[str, dict[str, Any]] = {
    "plain": {},
    "shard": {"shard": True},
    "two passes": {"curvature": "eigen"},
    "examples": {"curvature": "samples", "fisher": "data"},
    "neighbours": {"curvature": "tridiagonal"},
    "halves": {"until": 1e-9},
}
ALONE: dict[str, Anchor] = {}


def main() -> None:
    """Write all cases, from the first rank."""
    warnings.simplefilter("ignore")
    out, *names = sys.argv[1:]
    names = names or list(CASES)
    alone = {name: measured(CASES[name]) for name in names}
    folders = {name: str(Path(out).parent / name) for name in RESUMED}
    for name, options in RESUMED.items():
        left = {key: value for key, value in options.items() if key != "shard"}
        network = NETWORKS["mlp"]
        given = {"forward_loss": network.forward_loss, "progress": False} | left
        ALONE[folders[name]] = Anchor.estimate(network.build(), network.batches(1), **given)
    dist.init_process_group("gloo")
    found: dict[str, Any] = {name: compare(name, alone[name]) for name in names}
    found["failures"] = failures()
    found["resumed"] = {name: resumed(folders[name], **options) for name, options in RESUMED.items()}
    if dist.get_rank() == 0:
        Path(out).write_text(json.dumps(found))
    dist.barrier()
    os._exit(0)  # gloo's threads can abort an interpreter that tears itself down while another rank still works


if __name__ == "__main__":
    main()
