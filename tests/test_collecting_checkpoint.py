"""Checkpoints that are not to be gone on with, and what becomes of their folders."""

from pathlib import Path
from typing import Any

import pytest
import torch
from laws import same
from networks import NETWORKS, Network
from stopped import SAME, Source, anchor_of
from torch import nn

from holdfast.errors import HoldfastError


def moved(network: Network) -> nn.Module:
    """Another model: one entry of one weight differs."""
    model = network.build()
    with torch.no_grad():
        next(model.parameters()).view(-1)[5] += 1e-3
    return model


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"curvature": "diagonal"}, "curvature was 'kronecker' and is 'diagonal' now"),
        ({"seed": 1}, "seed was 0 and is 1 now"),
        ({"fisher": "data"}, "fisher was 'sampled' and is 'data' now"),
        ({"draws": 2}, "draws was 1 and is 2 now"),
        ({"max_items": 5}, "max_items was None and is 5 now"),
        ({"until": 0.1}, "until was None and is 0.1 now"),
        ({"dtype": torch.bfloat16}, "dtype was 'None' and is 'torch.bfloat16' now"),
        ({"targets": ["q_proj"]}, "layers was .* and is .* now"),
        ({"storage": "diagonal"}, "layers was .* and is .* now"),
        ({"model": moved}, "weights was .* and is .* now"),
        ({"source": NETWORKS["llama"].batches(2)}, "does not begin with the batches"),
        ({"source": NETWORKS["llama"].batches(1)[:1]}, "does not begin with the batches"),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_a_checkpoint_of_something_else_is_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Source(network.batches(1), 2), checkpoint=tmp_path)
    given = {"source": network.batches(1)} | options | ({"model": moved(network)} if "model" in options else {})
    with pytest.raises(HoldfastError, match=f"can't be resumed: .*{message}"):
        anchor_of(network, given.pop("source"), checkpoint=tmp_path, **given)
    same(  # and it is still there for who asks for the same
        anchor_of(network, network.batches(1), checkpoint=tmp_path),
        anchor_of(network, network.batches(1)),
        rtol=SAME,
        atol=SAME,
    )


@pytest.mark.parametrize("name", ["sums.safetensors", "progress.json"])
@pytest.mark.parametrize("broken", [b"", b"{", None])
def test_a_broken_checkpoint_is_refused(name: str, broken: bytes | None, tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Source(network.batches(1), 2), checkpoint=tmp_path)
    file = tmp_path / "pass-1" / name
    file.write_bytes(broken) if broken is not None else file.unlink()
    with pytest.raises(HoldfastError, match="can't be resumed"):
        anchor_of(network, network.batches(1), checkpoint=tmp_path)


def test_other_files_stay(tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(KeyboardInterrupt):
        anchor_of(network, Source(network.batches(1), 2), checkpoint=tmp_path)
    anchor_of(network, network.batches(1), checkpoint=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_folder_that_can_not_be_written_is_told_before_any_work(tmp_path: Path) -> None:
    network = NETWORKS["llama"]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(HoldfastError, match="could not write"):
        anchor_of(network, Source(network.batches(1), 0), checkpoint=tmp_path / "file")
