"""Recipes: everything a run was asked for, validated before anything heavy starts."""

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from holdfast.errors import HoldfastError, closest

SAMPLE_LENGTH = 128  # tokens of a sequence sampled from the model


class Settings(BaseModel):
    """A part of a recipe; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingSettings(Settings):
    """How to train: the names and meanings of `transformers.TrainingArguments`, shortened."""

    steps: int = Field(-1, description="optimizer steps; -1: as many as `epochs` takes")
    epochs: float = Field(1.0, gt=0)
    batch_size: int = Field(8, ge=1)
    accumulate: int = Field(1, ge=1, description="gradient accumulation steps")
    learning_rate: float = Field(2e-4, gt=0)
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup", "inverse_sqrt"] = "cosine"
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps")
    weight_decay: float = Field(0.0, ge=0)
    clip: float = Field(1.0, ge=0, description="max_grad_norm; 0 for none")
    bf16: bool = False
    log_steps: int = Field(10, ge=1)
    save_steps: int = Field(0, ge=0, description="a checkpoint every so many steps; 0 for none")
    eval_steps: int = Field(0, ge=0, description="measure both sides every so many steps; 0: before and after only")
    report_to: list[str] = []

    @field_validator("steps")
    @classmethod
    def _some_steps(cls, steps: int) -> int:
        if steps < 1 and steps != -1:
            raise ValueError("at least 1 step, or -1 for as many as the epochs take")
        return steps


class DataSettings(Settings):
    """Where text comes from: a file, a folder, or a hub id, with its columns; "self" samples the model.

    A recipe may give the path alone: `target: tickets.jsonl`.
    """

    path: str
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


Recipe = TypeVar("Recipe", bound=Settings)


def validate(cls: type[Recipe], values: Mapping[str, Any], prefix: str = "") -> Recipe:
    """The recipe of these values; `prefix` is what the names of its keys begin with, where it is a part of another.

    Raises:
        HoldfastError: an unknown key (with the nearest known one) or a value of the wrong kind, by its full name.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        known = known_keys(cls, prefix)
        said = "; ".join(dict.fromkeys(_explain(known, problem, prefix) for problem in error.errors()))
        unknown = "unknown key" in said and "did you mean" not in said
        raise HoldfastError(said, wanted=f"keys of a recipe: {', '.join(known)}" if unknown else "") from error


def _explain(known: list[str], problem: Any, prefix: str) -> str:
    name = prefix + ".".join(str(part) for part in problem["loc"] if part not in ("str", "list[str]"))
    if problem["type"] == "extra_forbidden":
        near = closest(name, known, count=1)
        return f"unknown key {name!r}" + (f" (did you mean {near!r}?)" if near else "")
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] == "model_type":
        return f"{name}: it should be a mapping of keys to values (got {problem['input']!r})"
    message = problem["msg"].removeprefix("Value error, ").replace("Input should", "it should")
    got = "" if isinstance(problem["input"], Mapping) else f" (got {problem['input']!r})"  # not a whole part again
    return f"{name}: {message}{got}" if name else message


def known_keys(cls: type[Settings], prefix: str = "") -> list[str]:
    """The dotted names of all keys."""
    keys = []
    for name, known in cls.model_fields.items():
        inside = () if get_origin(known.annotation) is list else get_args(known.annotation)
        kinds = [known.annotation, *inside]
        part = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), None)
        keys += [f"{prefix}{name}"] if part is None else known_keys(part, f"{prefix}{name}.")
    return keys


def layer_names(targets: Any) -> Any:
    """Plain names, separated by commas, as a list; "all-linear" and regular expressions as they are."""
    if not isinstance(targets, str) or targets == "all-linear":
        return targets
    names = [name.strip() for name in targets.split(",")]
    return names if all(re.fullmatch(r"\w[\w.]*", name) for name in names) else targets


def load(path: Path) -> dict[str, Any]:
    """The values of a YAML file.

    Raises:
        HoldfastError: no such file, no YAML, or no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _no_recipe(f"the recipe {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise _no_recipe(f"the recipe {path} is not text: {error.reason}") from error
    except yaml.YAMLError as error:
        raise _no_recipe(f"the recipe {path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise _no_recipe(f"the recipe {path} is not a mapping of keys to values")
    return values


def _no_recipe(what: str) -> HoldfastError:
    return HoldfastError(
        what,
        wanted='a YAML file of "key: value" lines, such as the recipe.resolved.yaml of a run',
        causes=["data is named with --target or --source, not as the recipe"],
        remedy="name the recipe, or leave it out and pass --model and --target",
    )


def merge(values: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with what is given in their place; parts are merged key by key, and None means not given."""
    merged = dict(values)
    for key, value in given.items():
        if isinstance(value, Mapping):
            old = merged.get(key)
            new = merge({"path": old} if isinstance(old, str) else old if isinstance(old, Mapping) else {}, value)
            if new:
                merged[key] = new
        elif value is not None:
            merged[key] = value
    return merged


def override(values: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """`a.b=c` set in a copy of the values; c is read as YAML.

    Raises:
        HoldfastError: no equals sign, a value that is not YAML, or a part that is not one.
    """
    changed = copy.deepcopy(dict(values))
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise HoldfastError(f"--set {setting} sets nothing", wanted="--set key=value, or --set part.key=value")
        *parents, leaf = key.split(".")
        place = changed
        for parent in parents:
            if parent in ("target", "source") and isinstance(place.get(parent), str):  # the path alone
                place[parent] = {"path": place[parent]}
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise HoldfastError(f"--set {setting}: {parent!r} is not a part of the recipe")
        try:
            place[leaf] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise HoldfastError(
                f"--set {setting}: the value is not YAML: {' '.join(str(error).split())}",
                remedy="put it in quotes: --set 'key=\"value\"'",
            ) from error
    return changed


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values as one mapping, with dots between the parts of a key."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat`."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        place = found
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return found


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """The keys, with dots, in which two recipes differ, each with both values."""
    old, new = flat(theirs), flat(ours)
    return [f"{k} was {old.get(k)}, now {new.get(k)}" for k in {**old, **new} if old.get(k) != new.get(k)]


def dump(recipe: Settings) -> str:
    """The resolved recipe as YAML."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
