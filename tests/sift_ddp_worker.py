"""SIFT in two processes under DistributedDataParallel: is it what one process does, and what is sent?

torchrun --nproc_per_node 2 sift_ddp_worker.py OUT.json
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from sifted import BATCH, batches, bits, loss, masks, perceptron, sifted, trainable
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from holdfast.errors import HoldfastError

STEPS = 4
CASES: dict[str, dict[str, Any]] = {
    "random": {},
    "biases, by row": {"biases": True, "scope": "row", "score": "magnitude"},
    "towards the start": {"decay_to": "start"},
}


def alone(name: str) -> dict[str, Any]:
    """One process with the whole batches: the tensors in the end."""
    model = sifted(perceptron(torch.float64), **CASES[name])
    optimizer = torch.optim.AdamW(trainable(model), lr=1e-2, weight_decay=0.1)
    for batch in batches(STEPS, dtype=torch.float64):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    return {"bits": bits(model), "masks": masks(model)}


def together(name: str) -> dict[str, Any]:
    """This process's half of every batch."""
    rank = dist.get_rank()
    model = sifted(perceptron(torch.float64), **CASES[name])
    wrapped = DistributedDataParallel(model)
    sent = []

    def counting(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent.append(bucket.buffer().numel())
        bucket.buffer().div_(dist.get_world_size())
        return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])

    wrapped.register_comm_hook(None, counting)
    optimizer = torch.optim.AdamW(trainable(wrapped), lr=1e-2, weight_decay=0.1)
    half = slice(rank * BATCH // 2, (rank + 1) * BATCH // 2)
    for x, y in batches(STEPS, dtype=torch.float64):
        optimizer.zero_grad()
        loss(wrapped, (x[half], y[half])).backward()
        optimizer.step()
    return {
        "bits": {name: tensor.tolist() for name, tensor in bits(model).items()},
        "masks": {name: mask.tolist() for name, mask in masks(model).items()},
        "sent": sum(sent) / STEPS,
        "entries": sum(parameter.numel() for parameter in trainable(model)),
        "buffers": [name for name, _ in wrapped.named_buffers()],
    }


def lazily(model: Any) -> str:
    """What a choice from the first backward pass says here."""
    try:
        loss(model, batches(1)[0])
    except HoldfastError as error:
        return str(error)
    return ""


def sharded(version: int) -> str:
    """What FSDP's first step, or the pass after it, says here."""
    model = sifted(perceptron())
    if version == 1:
        whole: Any = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    else:
        whole = fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.AdamW(trainable(whole))
    try:
        loss(whole, batches(1)[0]).backward()
        optimizer.step()
        loss(whole, batches(1)[0])
    except HoldfastError as error:
        return str(error)
    return ""


def main() -> None:
    """Every case, gathered."""
    early = sifted(perceptron(), score="gradient")  # as where a trainer's arguments are made after the model
    dist.init_process_group("gloo")
    mine = {
        **{name: together(name) for name in CASES},
        "lazily": [lazily(early), lazily(sifted(perceptron(), score="gradient"))],
        "sharded": [sharded(1), sharded(2)],
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(everyone))
    dist.barrier()
    os._exit(0)  # tearing down can hang where the processes end at different times


if __name__ == "__main__":
    main()
