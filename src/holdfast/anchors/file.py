"""The anchor on disk: tensors as safetensors, facts as JSON, each refusing to load what is not whole.

A tensor that several layers share lies there once; symmetric matrices are packed triangles; in bfloat16, roots.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from holdfast import catalogue
from holdfast.anchors import packing, tensor_file
from holdfast.curvature.curvature import Curvature
from holdfast.errors import HoldfastError
from holdfast.files import whole_folder

if TYPE_CHECKING:
    from holdfast.anchor import Anchor

FORMAT = 2
TENSORS, FACTS = "anchor.safetensors", "anchor.json"
STORAGES = (None, torch.float32, torch.bfloat16)


def save(anchor: "Anchor", folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write the folder in one piece.

    Args:
        anchor: what is written.
        folder: where.
        dtype: None keeps every number as measured; torch.bfloat16 halves the file, each curvature staying positive
            semi-definite and its diagonal exact (see `holdfast.anchors.packing`).

    Raises:
        HoldfastError: another dtype, a folder of other things, no space, an anchor that another rank holds.
    """
    if not anchor.curvatures:
        raise HoldfastError(
            "this anchor holds no curvature",
            causes=["it was measured with shard=True, and rank 0 alone holds what was measured"],
            remedy="save it on rank 0",
        )
    if dtype not in STORAGES:
        raise HoldfastError(f"an anchor can't be stored as {dtype}", wanted="torch.float32 or torch.bfloat16")
    if dtype is torch.bfloat16 and not all(curvature.rounds for curvature in anchor.curvatures.values()):
        raise HoldfastError(
            f"curvature {anchor.kind!r} would not stay positive semi-definite in bfloat16",
            remedy="store it in float32",
        )
    check_destination(folder)
    layers, tensors = _named(anchor.curvatures)
    forms = {key: packing.form_of(key, tensor, dtype) for key, tensor in tensors.items()}
    pieces = {
        key + ending: piece
        for key, tensor in tensors.items()
        for ending, piece in packing.pieces(forms[key], tensor, dtype).items()
    }
    with whole_folder(folder) as temporary:
        tensor_file.write(temporary / TENSORS, pieces)
        facts = {
            "format": FORMAT,
            "curvature": anchor.kind,
            "fisher": anchor.fisher,
            "items": anchor.items,
            "facts": anchor.facts,
            "versions": {name: version(name) for name in ("holdfast", "torch", "transformers", "peft")},
            "dtype": sorted({str(piece.dtype).removeprefix("torch.") for piece in pieces.values()}),
            "tensors_sha256": _digest(temporary / TENSORS),
            "weights": anchor.weights,
            "layers": layers,
            "forms": forms,
        }
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _named(curvatures: Mapping[str, Curvature]) -> tuple[dict[str, dict[str, str]], dict[str, Tensor]]:
    """Layer -> name -> key, and key -> tensor; layers with one tensor have one key for it."""
    layers: dict[str, dict[str, str]] = {}
    tensors: dict[str, Tensor] = {}  # they stay alive, so that none takes the address of an earlier one
    known: dict[tuple[Any, ...], str] = {}
    for layer, curvature in curvatures.items():
        layers[layer] = {}
        for name, tensor in curvature.tensors().items():
            key = f"{layer}/{name}"
            if tensor.numel() >= packing.EXACT_BELOW:
                key = known.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype), key)
            tensors.setdefault(key, tensor)
            layers[layer][name] = key
    return layers, tensors


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
    missing = {"curvature", "fisher", "items", "facts", "weights", "layers", "forms", "tensors_sha256"} - set(facts)
    if missing:
        raise _broken(folder, f"{FACTS} lacks {', '.join(sorted(missing))}")
    return {
        "curvatures": _curvatures(folder, facts),
        "weights": facts["weights"],
        "kind": facts["curvature"],
        "fisher": facts["fisher"],
        "items": facts["items"],
        "facts": facts["facts"],
    }


def _curvatures(folder: Path, facts: dict[str, Any]) -> dict[str, Curvature]:
    kind = catalogue.curvature(facts["curvature"])
    curvatures: dict[str, Curvature] = {}
    try:
        with safe_open(_tensors(folder, facts), framework="pt") as file:
            stored = _Stored(file, facts["forms"])
            for layer, weight in facts["weights"].items():
                try:
                    tensors = {name: stored.tensor(key) for name, key in facts["layers"][layer].items()}
                    curvatures[layer] = kind.from_tensors(tensors)
                except KeyError as error:
                    raise _broken(folder, f"layer {layer!r} has no tensors ({error} is missing)") from error
                except ValueError as error:
                    raise _broken(folder, f"layer {layer!r} has tensors of another shape ({error})") from error
                if "float" in weight["dtype"] and math.prod(curvatures[layer].shape) != math.prod(weight["shape"]):
                    raise _broken(folder, f"layer {layer!r} has tensors of another shape than its weight")
            strangers = {name.rpartition("/")[0] for name in set(file.keys()) - stored.used}
    except SafetensorError as error:
        raise _broken(folder, f"{TENSORS} does not load ({error})") from error
    if not curvatures:
        raise _broken(folder, "it holds no layer")
    strangers |= set(facts["layers"]) - set(curvatures)
    if strangers:
        raise _broken(folder, f"it holds tensors of unknown layers: {', '.join(sorted(strangers))}")
    return curvatures


class _Stored:
    """The tensors of an open file, each read and unpacked once."""

    def __init__(self, file: Any, forms: Mapping[str, str]) -> None:
        self.file, self.forms = file, forms
        self.names = set(file.keys())
        self.used: set[str] = set()
        self._read: dict[str, Tensor] = {}

    def tensor(self, key: str) -> Tensor:
        """The tensor of that key.

        Raises:
            KeyError: it is not there.
            ValueError: its pieces don't go together.
        """
        if key not in self._read:
            names = {ending: key + ending for ending in packing.ENDINGS[self.forms[key]]}
            missing = set(names.values()) - self.names
            if missing:
                raise KeyError(missing.pop())
            self.used |= set(names.values())
            pieces = {ending: self.file.get_tensor(name) for ending, name in names.items()}
            self._read[key] = packing.unpacked(self.forms[key], pieces)
        return self._read[key]


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


def _tensors(folder: Path, facts: dict[str, Any]) -> Path:
    """The file of tensors, if it is the one that the facts describe."""
    path = folder / TENSORS
    if not path.is_file():
        raise _broken(folder, f"{TENSORS} is missing")
    if _digest(path) != facts["tensors_sha256"]:
        raise _broken(folder, f"{TENSORS} is not the file that {FACTS} describes (truncated or changed)")
    return path


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _broken(folder: Path, what: str) -> HoldfastError:
    return HoldfastError(
        f"the anchor in {folder} is broken: {what}",
        causes=["the copy or download was cut off", "files of two anchors were mixed"],
        remedy="copy the folder again, or estimate the anchor again",
    )
