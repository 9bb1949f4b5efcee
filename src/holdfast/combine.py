"""`holdfast combine`: a weighted sum of SIFT adapters' folders, as a folder like theirs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast.adapter_folder import base_of, settings_of
from holdfast.adapters.registration import peft_type
from holdfast.errors import HoldfastError
from holdfast.files import output_folder, whole_folder, write_text
from holdfast.front_matter import front_matter
from holdfast.language_model import load_adapter, load_model
from holdfast.sift.composing import add_weighted
from holdfast.tuned import check_destination

SIGNATURE = "combined with Holdfast"
NAME = "default"  # as PEFT calls an adapter that lies in a folder by itself


def combine(
    parts: Sequence[tuple[Path, float]], out: Path, model: str | None = None, dtype: str = "auto"
) -> dict[str, Any]:
    """Add finished SIFT adapters up, with weights; see `holdfast.sift.composing.add_weighted`.

    The base model is read for the weights that the adapters start from; each adapter's hashes must be its own.

    Args:
        parts: adapter folders and weights.
        out: for the sum.
        model: the base model; None is the one that the first adapter names.
        dtype: to load it in: the one that the adapters were trained in.

    Returns:
        What was done: `adapters`, `entries` in all, `tensors` with their entries.

    Raises:
        HoldfastError: a folder without a SIFT adapter, adapters of another base model, an `out` that holds something
            else.
    """
    base = _check(parts, out, model)
    with output_folder(out.parent):
        loaded = _load(base, dtype, [folder for folder, _ in parts])
        tensors = add_weighted(loaded, [(_called(i), weight) for i, (_, weight) in enumerate(parts)], NAME)
        done = {
            "schema": 1,
            "model": base,
            "adapters": [{"adapter": str(folder), "weight": weight} for folder, weight in parts],
            "entries": sum(tensors.values()),
            "tensors": tensors,
        }
        with whole_folder(out) as folder:
            loaded.peft_config[NAME].base_model_name_or_path = base
            loaded.save_pretrained(str(folder), selected_adapters=[NAME], save_embedding_layers=False)
            write_text(folder / "README.md", _card(done))
    return done


def _check(parts: Sequence[tuple[Path, float]], out: Path, model: str | None) -> str:
    """The base model, where nothing speaks against what was asked."""
    if not parts:
        raise HoldfastError("no adapters to combine", remedy="--adapter DIR --weight 1, once for each")
    named = [base_of(folder) for folder, _ in parts]
    for folder, _ in parts:
        check_sift(folder, "only SIFT adapters combine", "train with `holdfast tune --method sift`")
    if any(out.resolve() == folder.resolve() for folder, _ in parts):
        raise HoldfastError(f"--out {out} would write over an adapter that came", remedy="choose another --out")
    check_destination(out, SIGNATURE)
    base = model or next((name for name in named if name), None)
    if base is None:
        raise HoldfastError(f"{parts[0][0]} names no base model", remedy="name it: --model MODEL")
    return base


def check_sift(folder: Path, why: str, remedy: str) -> None:
    """Raise HoldfastError for an adapter of another method."""
    kind = settings_of(folder).get("peft_type")
    if kind != peft_type("SIFT").value:
        raise HoldfastError(f"{folder} is a {kind} adapter, and {why}", remedy=remedy)


def _load(base: str, dtype: str, folders: list[Path]) -> Any:
    """The model with all adapters on it, in order."""
    model = load_model(base, dtype)
    for number, folder in enumerate(folders):
        model = load_adapter(model, str(folder), _called(number))
    return model


def _called(number: int) -> str:
    """PEFT looks for adapters' names between the dots of tensors' names, where layers have numbers."""
    return f"part-{number}"


def _card(done: dict[str, Any]) -> str:
    terms = "\n".join(f"- {part['weight']:+g} x `{part['adapter']}`" for part in done["adapters"])
    head = front_matter({"base_model": done["model"], "library_name": "peft"})
    return (
        f"{head}\n\n# Sum of SIFT adapters\n\n"
        f"{done['entries']:,} entries of {len(done['tensors'])} tensors of {done['model']}, {SIGNATURE}:\n\n{terms}\n"
    )
