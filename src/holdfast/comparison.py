"""Several ways of holding on, side by side: what they are and what they have in common."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn

from holdfast.batches import Row
from holdfast.evaluation import mean_loss
from holdfast.recipe import Settings, TrainingSettings


class Hold(Settings):
    """One way of holding on: a weight-space part, a function-space part, rehearsal, training differently, or nothing.

    What is None is as the comparison's other rows have it.
    """

    curvature: str | None = None
    strength: float = Field(0.0, ge=0)
    budget: str | None = Field(
        None, description="forgetting accepted; it sets the strength, or the distillation's weight"
    )
    damping: float = Field(0.0, ge=0)
    fisher: Literal["sampled", "data"] = "sampled"
    per: Literal["token", "sequence"] | None = None
    space: Literal["weights", "adapter"] = "weights"
    keep: int | None = Field(None, ge=1, description="examples that a curvature of stored samples keeps")
    form: str = Field("quadratic", description="the penalty on the shift: a name of the catalogue's")
    refresh: bool = False
    prior: float = Field(0.0, ge=0)
    distill: float = Field(0.0, ge=0)
    distill_source: Literal["self", "source", "target", "random"] = "self"
    distill_sequences: int = 4
    distill_every: int = 1
    distill_top_k: int | None = None
    replay: float = Field(0.0, ge=0)
    method: str | None = None
    tuner: dict[str, Any] = Field({}, description="options of the method's own")
    parameters: str | int | None = Field(None, description="how many may train; it sets the method's size")
    targets: str | list[str] | None = None
    learning_rate: float | None = Field(None, gt=0)
    weight_decay: float | None = Field(None, ge=0)
    evaluate_at: list[int] = Field([], description="steps after which everything measured is measured")

    @property
    def label(self) -> str:
        """What the result rows call the penalty."""
        kind = self.model_dump(include={"fisher", "form", "per", "space"}, exclude_defaults=True).values()
        parts = ["-".join([self.curvature, *kind]) if self.curvature else ""]
        parts += [f"distill-{self.distill_source}" if self.distill else ""]
        parts += ["replay" if self.replay else ""]
        return "+".join(part for part in parts if part) or "none"

    @property
    def estimate(self) -> dict[str, Any]:
        """The arguments of `Anchor.estimate` that differ from their defaults."""
        return self.model_dump(include={"fisher", "per", "space", "keep"}, exclude_defaults=True)

    @property
    def pricing(self) -> dict[str, Any]:
        """The arguments of the penalty, beside its strength, that differ from their defaults."""
        return self.model_dump(include={"damping", "refresh", "prior"}, exclude_defaults=True)

    def training(self, common: TrainingSettings) -> TrainingSettings:
        """The comparison's training settings with this row's own in their place."""
        own = {"learning_rate": self.learning_rate, "weight_decay": self.weight_decay}
        return common.model_copy(update={name: value for name, value in own.items() if value is not None})


class ComparisonSettings(Settings):
    """What all rows of a comparison have in common."""

    model: str
    method: str = "lora"
    rank: int = 8
    targets: str | list[str] = "all-linear"
    length: int = 128
    source_sequences: int = 256
    training: TrainingSettings


@dataclass
class Workload:
    """Tokenised rows: to train on, to anchor on, and to measure on."""

    target_train: list[Row]
    source_train: list[Row]
    measured: dict[str, list[Row]]  # "source_test", "target_test", and the same of validation
    prompts: dict[str, str] = field(default_factory=dict)  # side -> a prompt to continue before and after
    steering: list[Row] = field(default_factory=list)  # source rows that budgets are steered by


def measure(model: nn.Module, work: Workload) -> dict[str, float]:
    """The mean loss on every measured set, nats per item."""
    return {name: mean_loss(model, rows, name=name).nats for name, rows in work.measured.items()}


def sides(before: dict[str, float], after: dict[str, float], split: str) -> dict[str, float]:
    """source_before, source_after, target_before, target_after of one split."""
    return {
        f"{side}_{when}": losses[f"{side}_{split}"]
        for side in ("source", "target")
        for when, losses in (("before", before), ("after", after))
        if f"{side}_{split}" in losses
    }


def blocks(tokenizer: Any, documents: Sequence[str], length: int, limit: int | None = None) -> list[Row]:
    """Documents packed into rows of `length` tokens."""
    stream: list[int] = []
    for ids in tokenizer(list(documents), verbose=False)["input_ids"]:
        stream.extend(ids)
        stream.append(tokenizer.eos_token_id)
        if limit is not None and len(stream) >= limit * length:
            break
    count = len(stream) // length if limit is None else min(limit, len(stream) // length)
    return [{"input_ids": torch.tensor(stream[i * length : (i + 1) * length])} for i in range(count)]
