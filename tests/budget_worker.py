"""Budgets under a trainer, in one process or two: are the strengths the same everywhere, and is the end inside?

python budget_worker.py OUT.json
torchrun --nproc_per_node 2 budget_worker.py OUT.json
"""

import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import trainer_worker as worker
from transformers import TrainerCallback

import holdfast

STEPS, BUDGET = 30, 1.0
WAYS = ("kronecker", "distill")


class Strengths(TrainerCallback):
    """What the strength was at each step."""

    def __init__(self, penalty: Any) -> None:
        self.penalty, self.seen = penalty, []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(getattr(self.penalty, self.penalty.knob))


def run(way: str, how: str) -> dict[str, Any]:
    """One short training within a budget: strengths by step, what was measured, the weights, and their spread."""
    model = start()
    anchor = holdfast.Anchor.estimate(model, worker.batches(), targets=worker.TARGETS, progress=False)
    make = {
        "kronecker": lambda: holdfast.Penalty(model, anchor),
        "distill": lambda: holdfast.Distill(model, worker.batches(), 1.0, progress=False),
    }
    held_out = [{"input_ids": torch.tensor(worker.rows(16, seed=2)["input_ids"])[i : i + 2]} for i in range(0, 16, 2)]
    penalty = make[way]().keep_within(BUDGET, held_out)
    seen = Strengths(penalty)
    batch = 4 // int(os.environ.get("WORLD_SIZE", "1"))  # the same step whatever the number of processes
    with tempfile.TemporaryDirectory() as folder:
        callbacks = [holdfast.HoldfastCallback(penalty)] if how == "callback" else []
        trainer = worker.make_trainer(
            "Trainer", model, folder, max_steps=STEPS, learning_rate=0.05, optim="adamw_torch", seed=0,
            per_device_train_batch_size=batch, callbacks=[*callbacks, seen],
        )  # fmt: skip
        if how == "attach":
            holdfast.attach(trainer, penalty)
        trainer.train()
    weights = worker.flat(worker.trained(model))
    mean, spread = worker.across(weights)
    steering = penalty.steerings[0]
    return {
        "strengths": seen.seen,
        "measured": steering.reading.amount,
        "steps": steering.controller.steps,
        "weights": mean.tolist(),
        "spread": spread,
    }


def start() -> Any:
    """A model that knows its source by heart, with an adapter that has not moved."""
    base = worker.base_model()
    optimizer = torch.optim.Adam(base.parameters(), lr=0.01)
    ids = worker.batches()[0]["input_ids"]
    for _ in range(60):
        optimizer.zero_grad()
        base(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    torch.manual_seed(1)
    model = worker.get_peft_model(base, worker.lora_config())
    for parameter in model.parameters():
        parameter.data = parameter.data.double()
    return model


def table() -> dict[str, dict[str, Any]]:
    """Every way of holding on, through the callback; one of them also attached to the loss."""
    found = {way: run(way, "callback") for way in WAYS}
    return found | {"attached": run("kronecker", "attach")}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo")
    measured = table()
    if dist.get_rank() == 0:
        Path(sys.argv[1]).write_text(json.dumps(measured))
    dist.barrier()
    os._exit(0)  # as in `trainer_worker`
