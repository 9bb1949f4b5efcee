"""`holdfast analyse calibration`: from what was named to a path, anchors and a finding."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast import catalogue
from holdfast.analysis.briefly import briefly_tuned
from holdfast.analysis.calibration import ALPHAS, Step, calibration, check, scaled_path
from holdfast.analysis.calibration_finding import finding
from holdfast.analysis.leaving import Finding
from holdfast.analysis.subject import Asked, Subject, batches, read_subject
from holdfast.analysis.tuned import moved_by
from holdfast.anchor import Anchor
from holdfast.before_after import batches as measured_batches
from holdfast.checkpoints import FOLDER
from holdfast.curvature.statistic import Reading
from holdfast.errors import HoldfastError
from holdfast.noted import noted
from holdfast.sides import limited

CURVATURES = "kronecker,diagonal,samples-joint"


@dataclass(frozen=True)
class Wanted:
    """The command's own options, as the user gave them."""

    adapter: Path | None = None
    checkpoints: Path | None = None
    alphas: str | None = None
    steps: int = 60
    anchors: tuple[Path, ...] = ()
    curvature: str | None = None
    items: int = 32_000
    keep: int = 64

    @property
    def kinds(self) -> list[str]:
        """Curvatures that are measured here; the usual ones where nothing else is named."""
        named = self.curvature if self.curvature is not None or self.anchors else CURVATURES
        return list(dict.fromkeys(part.strip() for part in (named or "").split(",") if part.strip()))


def calibrate(asked: Asked, wanted: Wanted) -> Finding:
    """Read, tune where no path is named, measure curvatures, and compare.

    Raises:
        HoldfastError: what `calibration` refuses, options that exclude each other, or a path without shifts.
    """
    alphas = _alphas(wanted)
    stored = {str(folder): Anchor.load(folder) for folder in wanted.anchors}
    for name, anchor in stored.items():
        check(anchor, name)
    for kind in wanted.kinds:
        if not catalogue.curvature(kind).forecasts:
            raise HoldfastError(f"--curvature {kind} forecasts nothing in nats", remedy="choose one that is measured")
    tunes = wanted.adapter is None and wanted.checkpoints is None
    with noted() as notes:
        subject = read_subject(asked, "source", *(["target"] if tunes else []))
        path, along, said = _path(subject, asked, wanted, alphas)
        anchors = stored | _measured(subject, asked, wanted, sorted(path[0].shifts))
        rows = measured_batches(subject.source.held_out)
        found = calibration(subject.model, anchors, path, rows, along=along, progress=True)
    settings = {
        **subject.about,
        "path": said,
        "anchors": {name: {"kind": one.kind, "items": one.items} for name, one in anchors.items()},
        "length": asked.length,
        "seed": asked.seed,
        "dtype": asked.dtype,
    }
    return finding(found, settings, notes)


def _alphas(wanted: Wanted) -> list[float]:
    if wanted.alphas is None:
        return list(ALPHAS)
    if wanted.checkpoints is not None:
        raise HoldfastError("--alphas with --checkpoints: the path is a run's own", remedy="leave one of them out")
    try:
        return [float(part) for part in wanted.alphas.split(",")]
    except ValueError as error:
        raise HoldfastError(f"--alphas {wanted.alphas}", wanted="numbers, as in 0.1,0.5,1") from error


def _path(subject: Subject, asked: Asked, wanted: Wanted, alphas: list[float]) -> tuple[list[Step], str, str]:
    """The path, what its places are, and what took it."""
    if wanted.checkpoints is not None:
        if wanted.adapter is not None:
            raise HoldfastError("--adapter with --checkpoints: one path at a time", remedy="leave one of them out")
        steps = [Step(float(at), moved_by(subject.model, one, asked.dtype)) for at, one in _run(wanted.checkpoints)]
        return steps, "optimizer step", f"the run in {wanted.checkpoints}"
    if wanted.adapter is not None:
        return scaled_path(moved_by(subject.model, wanted.adapter, asked.dtype), alphas), "alpha", str(wanted.adapter)
    moved = briefly_tuned(subject.model, subject.target, wanted.steps, asked.seed)
    return scaled_path(moved, alphas), "alpha", f"LoRA of {wanted.steps} steps on the target"


def _run(out: Path) -> list[tuple[int, Path]]:
    """Optimizer step and folder of each checkpoint: of a run of Holdfast's, or of any Trainer's."""
    found = [path for folder in (out / FOLDER, out) for path in folder.glob("checkpoint-*")]
    kept = [(int(path.name.rpartition("-")[2]), path) for path in found if path.name.rpartition("-")[2].isdigit()]
    if not kept:
        raise HoldfastError(
            f"there is no checkpoint in {out}",
            causes=["the run wrote none (--save-steps), and keeps but the last two"],
            remedy="name a run with checkpoints, or a finished adapter with --adapter",
        )
    return sorted(kept)


def _measured(subject: Subject, asked: Asked, wanted: Wanted, layers: list[str]) -> dict[str, Anchor]:
    rows: list[Any] = batches(limited(subject.source.rows, wanted.items))
    found = {}
    for kind in wanted.kinds:
        keep = wanted.keep if catalogue.curvature(kind).keeps else Reading().keep
        found[kind] = Anchor.estimate(
            subject.model, rows, curvature=kind, targets=layers, keep=keep, seed=asked.seed, progress=True
        )
    return found
