"""Recipes: everything a run was asked for, validated before anything heavy starts."""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from holdfast.errors import HoldfastError, closest

SAMPLE_LENGTH = 128  # tokens of a sequence sampled from the model


class Settings(BaseModel):
    """A part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class TrainingSettings(Settings):
    """How to train: the names and meanings of `transformers.TrainingArguments`, shortened."""

    steps: int = Field(-1, description="optimizer steps; -1: as many as `epochs` takes")
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1, description="gradient accumulation steps")
    learning_rate: float = Field(2e-4, gt=0)
    schedule: str = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="max_grad_norm; 0 for none")
    bf16: bool = False
    log_steps: int = Field(10, ge=1)
    save_steps: int = Field(0, ge=0, description="a checkpoint every so many steps; 0 for none")
    report_to: list[str] = []


class DataSettings(Settings):
    """Where text comes from: a file, a folder, or a hub id, with its columns; "self" samples the model."""

    path: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None


class TuneRecipe(Settings):
    """One `holdfast tune` run."""

    model: str
    target: DataSettings
    source: DataSettings | None = None
    anchor: Path | None = None
    strength: float = Field(1.0, ge=0)
    damping: float = Field(0.0, ge=0)
    distill: float = Field(0.0, ge=0, description="weight of the distillation; 0 for none")
    distill_sequences: int = Field(4, ge=1)
    distill_every: int = Field(1, ge=1)
    distill_top_k: int | None = Field(None, ge=1)
    samples: int = Field(256, ge=4, description="sequences sampled from the model for --source self")
    method: str = "lora"
    rank: int = Field(8, ge=1)
    alpha: float | None = Field(None, gt=0)
    targets: str | list[str] = "all-linear"
    sample_length: int = Field(SAMPLE_LENGTH, ge=8, description="tokens per sampled sequence")
    length: int = Field(512, ge=2, description="tokens per sequence")
    held_out: float = Field(0.05, gt=0, lt=1, description="share of each data set kept for measuring")
    training: TrainingSettings = TrainingSettings()
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.distill > 0 and self.source is None:
            raise ValueError("distillation needs --source DATA, or --source self for text sampled from the model")
        return self


Recipe = TypeVar("Recipe", bound=Settings)


def validate(cls: type[Recipe], values: dict[str, Any]) -> Recipe:
    """The recipe of these values.

    Raises:
        HoldfastError: an unknown key (with the nearest known one) or a value of the wrong kind, by its full name.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        lines = [_explain(cls, problem) for problem in error.errors()]
        raise HoldfastError("; ".join(lines), wanted=f"the keys of a {cls.__name__}") from error


def _explain(cls: type[Settings], problem: Any) -> str:
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = closest(str(problem["loc"][-1]), _known_keys(cls))
        return f"unknown key {name!r}" + (f" (did you mean {near}?)" if near else "")
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message}" if name else message


def _known_keys(cls: type[Settings]) -> list[str]:
    keys = list(cls.model_fields)
    for known in cls.model_fields.values():
        if isinstance(known.annotation, type) and issubclass(known.annotation, Settings):
            keys += _known_keys(known.annotation)
    return keys


def load(path: Path) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        HoldfastError: no such file, no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HoldfastError(f"the recipe {path} can't be read: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise HoldfastError(f"the recipe {path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise HoldfastError(f"the recipe {path} is not a mapping of keys to values")
    return values


def override(values: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """`a.b=c` set in a copy of the values; c is read as YAML."""
    changed = yaml.safe_load(yaml.safe_dump(values))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise HoldfastError(f"--set {setting}", wanted="--set key=value, or --set part.key=value")
        *parents, leaf = key.split(".")
        place = changed
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise HoldfastError(f"--set {setting}: {parent!r} is not a part of the recipe")
        place[leaf] = yaml.safe_load(value)
    return changed


def dump(recipe: Settings) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
