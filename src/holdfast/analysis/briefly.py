"""A path to analyse where the user has none: a short run of an adapter on the new data."""

from typing import Any

from holdfast import catalogue
from holdfast.recipe import TrainingSettings
from holdfast.shifts.read import shifts
from holdfast.shifts.shift import Shift
from holdfast.sides import Side
from holdfast.tuners.options import chosen

METHOD, RANK, TARGETS = "lora", 8, "all-linear"


def briefly_tuned(model: Any, target: Side, steps: int, seed: int) -> dict[str, Shift]:
    """Layer name -> its shift after a short training with the demo's settings; the model is bare again afterwards."""
    from transformers import set_seed

    from holdfast.training import train

    set_seed(seed)
    tuned: Any = chosen(catalogue.tuner(METHOD), {}, rank=RANK).prepare(model, TARGETS)
    try:
        settings = TrainingSettings(steps=steps, batch_size=16, learning_rate=3e-3, warmup=0.05)
        train(tuned, target.rows, settings, seed=seed)
        return shifts(tuned)
    finally:
        tuned.unload()
        model.eval()
