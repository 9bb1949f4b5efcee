"""Two processes choose SIFT's entries, each on its own share of the batches.

torchrun --nproc_per_node 2 sift_worker.py OUT.json
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sift_models import sifted, token_batches
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from trainer_worker import base_model, make_trainer

from holdfast.errors import HoldfastError
from holdfast.sift.callback import SiftCallback
from holdfast.sift.selection import select


def chosen(scope: str, rank: int) -> list[object]:
    """Every second batch on each rank."""
    selection = select(sifted(batches=2, scope=scope), token_batches(4)[rank::2])
    return [selection.checksum, selection.items, selection.batches]


def refused(model: nn.Module, batches: object = None) -> str:
    """The message that choosing ends in."""
    try:
        select(model, batches)
    except HoldfastError as error:
        return str(error)
    return ""


def trained(folder: str) -> list[object]:
    """A trainer's choice before its first step and one after the second; a sum over its model in the end."""
    callback = SiftCallback(progress=False)
    model = sifted(base_model(), refresh=2, seed=5)
    make_trainer("Trainer", model, folder, callbacks=[callback], max_steps=4, learning_rate=0.1).train()
    chosen = [(step, one.checksum, one.batches) for step, one in callback.selections]
    return [chosen, sum(float(p.detach().double().sum()) for p in model.parameters())]


def main() -> None:
    """Gather what both ranks found."""
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mine: dict[str, object] = {scope: chosen(scope, rank) for scope in ("tensor", "global")}
    wrapped = DistributedDataParallel(sifted(scope="global"))
    mine["wrapped"] = refused(wrapped, token_batches())
    in_place = DistributedDataParallel(sifted(batches=2))
    mine["in place"] = select(in_place, token_batches(4)[rank::2]).checksum
    mine["nothing"] = refused(sifted(), token_batches() if rank else [])
    mine["different"] = refused(sifted(score="random", seed=rank))
    mine["callback"] = trained(str(Path(sys.argv[1]).parent / "run"))
    found: list[dict[str, object]] = [{}, {}]
    dist.all_gather_object(found, mine)
    if rank == 0:
        Path(sys.argv[1]).write_text(json.dumps({key: [one[key] for one in found] for key in mine}))
    dist.barrier()
    os._exit(0)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
