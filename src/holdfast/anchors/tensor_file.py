"""A safetensors file written tensor by tensor: the library's own writer wants them all in memory at once."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from holdfast.anchors.packing import Piece

NAMES = {
    torch.float64: "F64",
    torch.int64: "I64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


def write(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Write every piece, each made when its turn comes: 8 bytes of length, a JSON header, the tensors' bytes."""
    # Wide numbers first, so that each starts at a multiple of its size, as readers need.
    ordered = dict(sorted(pieces.items(), key=lambda item: -item[1].dtype.itemsize))
    header, end = {}, 0
    for name, piece in ordered.items():
        start, end = end, end + piece.dtype.itemsize * torch.Size(piece.shape).numel()
        header[name] = {"dtype": NAMES[piece.dtype], "shape": list(piece.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, piece in ordered.items():
            file.write(_bytes(name, piece))


def _bytes(name: str, piece: Piece) -> memoryview:
    tensor = piece.make().detach().cpu().contiguous()
    if (tensor.dtype, tuple(tensor.shape)) != (piece.dtype, piece.shape):
        raise RuntimeError(f"{name}: {tensor.dtype} {tuple(tensor.shape)} is not what the header says")
    return tensor.reshape(-1).view(torch.uint8).numpy().data
