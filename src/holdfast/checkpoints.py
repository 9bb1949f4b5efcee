"""Checkpoints that are whole: the Trainer writes them file by file, and a killed run leaves the last one cut."""

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from holdfast import files
from holdfast.errors import HoldfastError
from holdfast.recipe import differences

FOLDER = "checkpoints"
RECIPE = "recipe.resolved.yaml"
SEAL = "sealed.json"  # written last: a checkpoint without it is not whole
KEPT = 2


@dataclass(frozen=True)
class Run:
    """What a run has to have in common with the one that goes on from its checkpoint."""

    recipe: str  # YAML
    data: Mapping[str, Any]  # side -> fingerprint
    start: str | None = None  # of what is trained, where a penalty is centred on it


def seal(checkpoint: Path, run: Run) -> None:
    """Declare a checkpoint whole, once all of it is on the disk."""
    files.sync(checkpoint)
    files.write_text(checkpoint / RECIPE, run.recipe)
    files.write_json(checkpoint / SEAL, {**run.data, "start": run.start})


def step(checkpoint: Path) -> int:
    """The optimizer step at which it was taken."""
    return int(checkpoint.name.rpartition("-")[2])


def whole(out: Path) -> list[Path]:
    """The whole checkpoints of a run's folder, the first step first."""
    found = (out / FOLDER).glob("checkpoint-*")
    return sorted((p for p in found if re.fullmatch(r"checkpoint-\d+", p.name) and (p / SEAL).is_file()), key=step)


def last(out: Path) -> Path:
    """The checkpoint to go on from.

    Raises:
        HoldfastError: there is none.
    """
    found = whole(out)
    if not found:
        raise HoldfastError(
            f"there is no checkpoint to resume from in {out}",
            causes=[
                "the run stopped before its first checkpoint, or was to write none (--save-steps)",
                "--out names another folder",
            ],
            remedy="start again without --resume",
        )
    return found[-1]


def keep_only(out: Path, own: list[Path]) -> list[Path]:
    """Remove all checkpoints but the last few of `own`; returns those."""
    kept = own[-KEPT:]
    for folder in (out / FOLDER).glob("checkpoint-*"):
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)
    return kept


def discard_cut(out: Path) -> None:
    """Remove what an interrupted save has left; the folder too when nothing is in it."""
    finished = whole(out)
    for folder in (out / FOLDER).glob("checkpoint-*"):
        if folder not in finished:
            shutil.rmtree(folder, ignore_errors=True)
    if (out / FOLDER).is_dir() and not any((out / FOLDER).iterdir()):
        (out / FOLDER).rmdir()


def check_recipe(checkpoint: Path, recipe: str) -> None:
    """Raise HoldfastError where the checkpoint's run had other settings, naming those that differ."""
    path = checkpoint / RECIPE
    changed = differences(*(yaml.safe_load(text) for text in (path.read_text(encoding="utf-8"), recipe)))
    if changed:
        raise HoldfastError(
            f"the run in {checkpoint.parent.parent} was started with other settings: " + ", ".join(changed[:5]),
            wanted=f"the settings in {path}",
            remedy=f"holdfast tune {path} --out {checkpoint.parent.parent} --resume, or choose another --out",
        )


def check_data(checkpoint: Path, data: Mapping[str, Any]) -> None:
    """Raise HoldfastError where the checkpoint's run saw other data."""
    theirs = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))
    changed = [side for side in data if theirs.get(side) != data[side]]
    if changed:
        raise HoldfastError(
            f"the {' and the '.join(changed)} data is not what the run in {checkpoint.parent.parent} was started with",
            causes=["a file was changed since", "the tokenizer was changed since"],
            remedy="bring the data back, or start again without --resume",
        )


def check_start(checkpoint: Path, start: str | None) -> None:
    """Raise HoldfastError where the checkpoint's run started its adapter elsewhere: its penalty had another centre."""
    if json.loads((checkpoint / SEAL).read_text(encoding="utf-8")).get("start") != start:
        raise HoldfastError(
            f"the adapter does not start where the run in {checkpoint.parent.parent} started it",
            wanted="the same start: the penalty is centred on it",
            causes=["another version of torch or peft draws other numbers", "the base model was changed since"],
            remedy="go on where the run was started, or start again without --resume",
        )
