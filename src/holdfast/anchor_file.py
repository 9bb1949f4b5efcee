"""The anchor on disk: tensors as safetensors, facts as JSON, each refusing to load what is not whole."""

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast import catalogue
from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.files import whole_folder

if TYPE_CHECKING:
    from holdfast.anchor import Anchor

FORMAT = 1
TENSORS, FACTS = "anchor.safetensors", "anchor.json"


def save(anchor: "Anchor", folder: Path) -> None:
    """Write the folder in one piece; a tensor that several layers share is stored once."""
    check_destination(folder)
    stored: dict[str, Tensor] = {}
    layers: dict[str, dict[str, str]] = {}
    known: dict[tuple[int, torch.Size], str] = {}
    alive = []  # so that no tensor takes the address of an earlier one
    for layer, curvature in anchor.curvatures.items():
        layers[layer] = {}
        for name, tensor in curvature.tensors().items():
            alive.append(tensor)
            key = f"{layer}/{name}"
            if tensor.numel() > 2:
                key = known.setdefault((tensor.data_ptr(), tensor.shape), key)
            if key not in stored:
                stored[key] = tensor.detach().contiguous().cpu()
            layers[layer][name] = key
    with whole_folder(folder) as temporary:
        save_file(stored, temporary / TENSORS)
        facts = {
            "format": FORMAT,
            "curvature": anchor.kind,
            "fisher": anchor.fisher,
            "items": anchor.items,
            "facts": anchor.facts,
            "versions": {name: version(name) for name in ("holdfast", "torch", "transformers", "peft")},
            "dtype": sorted({str(t.dtype).removeprefix("torch.") for t in stored.values()}),
            "tensors_sha256": _digest(temporary / TENSORS),
            "weights": anchor.weights,
            "layers": layers,
        }
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def check_destination(folder: Path) -> None:
    """Raise HoldfastError where writing an anchor would replace a folder of other things."""
    strangers = sorted(p.name for p in folder.iterdir() if p.name not in (TENSORS, FACTS)) if folder.is_dir() else []
    if strangers:
        raise HoldfastError(
            f"{folder} holds other files than an anchor's: {', '.join(strangers[:3])}",
            wanted="a new folder, an empty one, or an anchor to replace",
            remedy="choose another --out",
        )


def load(folder: Path) -> dict[str, Any]:
    """The arguments of `Anchor`, checked."""
    facts = _read_facts(folder)
    if facts.get("format") != FORMAT:
        raise HoldfastError(
            f"{folder} has anchor format {facts.get('format')!r}",
            wanted=f"format {FORMAT}, which this version of holdfast writes",
            remedy="estimate the anchor again, or install the version that wrote it: "
            f"holdfast {facts.get('versions', {}).get('holdfast', '?')}",
        )
    missing = {"curvature", "fisher", "items", "facts", "weights", "layers", "tensors_sha256"} - set(facts)
    if missing:
        raise _broken(folder, f"{FACTS} lacks {', '.join(sorted(missing))}")
    return {
        "curvatures": _curvatures(folder, facts, _read_tensors(folder, facts)),
        "weights": facts["weights"],
        "kind": facts["curvature"],
        "fisher": facts["fisher"],
        "items": facts["items"],
        "facts": facts["facts"],
    }


def _curvatures(folder: Path, facts: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Curvature]:
    kind = catalogue.curvature(facts["curvature"])
    curvatures = {}
    for layer in facts["weights"]:
        names = facts["layers"].get(layer)
        if names is None or any(key not in tensors for key in names.values()):
            raise _broken(folder, f"layer {layer!r} has no tensors")
        curvatures[layer] = kind.from_tensors({name: tensors[key] for name, key in names.items()})
        weight = facts["weights"][layer]
        if "float" in weight["dtype"] and math.prod(curvatures[layer].shape) != math.prod(weight["shape"]):
            raise _broken(folder, f"layer {layer!r} has tensors of another shape than its weight")
    if not curvatures:
        raise _broken(folder, "it holds no layer")
    used = {key for layer in facts["weights"] for key in facts["layers"][layer].values()}
    extra = sorted(({key.rpartition("/")[0] for key in set(tensors) - used}) | set(facts["layers"]) - set(curvatures))
    if extra:
        raise _broken(folder, f"it holds tensors of unknown layers: {', '.join(extra)}")
    return curvatures


def _read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    if not path.is_file():
        raise HoldfastError(
            f"{folder} is not an anchor: {FACTS} is missing",
            wanted="a folder written by `holdfast anchor` or Anchor.save",
            remedy="holdfast anchor --model ... --source ... --out DIR",
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise _broken(folder, f"{FACTS} is not JSON ({error})") from error
    if not isinstance(facts, dict):
        raise _broken(folder, f"{FACTS} is a {type(facts).__name__}, not an object")
    return facts


def _read_tensors(folder: Path, facts: dict[str, Any]) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.is_file():
        raise _broken(folder, f"{TENSORS} is missing")
    if _digest(path) != facts.get("tensors_sha256"):
        raise _broken(folder, f"{TENSORS} is not the file that {FACTS} describes (truncated or changed)")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise _broken(folder, f"{TENSORS} does not load ({error})") from error


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(folder: Path, what: str) -> HoldfastError:
    return HoldfastError(
        f"the anchor in {folder} is broken: {what}",
        causes=["the copy or download was cut off", "files of two anchors were mixed"],
        remedy="copy the folder again, or estimate the anchor again",
    )
