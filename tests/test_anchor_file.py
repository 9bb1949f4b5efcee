"""An anchor on disk is whole, of the right model, or refused with what differs."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import lora, move
from networks import NETWORKS
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.anchors import file as anchor_file
from holdfast.errors import HoldfastError
from holdfast.penalties.quadratic import Penalty

LLAMA = NETWORKS["llama"]
FACTS, TENSORS = anchor_file.FACTS, anchor_file.TENSORS


def anchor_of(model: nn.Module, **options: Any) -> Anchor:
    """A Kronecker anchor of any llama."""
    return Anchor.estimate(model, LLAMA.batches(2), progress=False, **options)


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    """The network's own anchor."""
    return anchor_of(LLAMA.build())


@pytest.fixture
def folder(anchor: Anchor, tmp_path: Path) -> Path:
    """The anchor on disk."""
    anchor.save(tmp_path / "anchor")
    return tmp_path / "anchor"


def rewrite(folder: Path, **changed: Any) -> None:
    """Other facts for the same tensors; None takes a fact away."""
    facts = json.loads((folder / FACTS).read_text()) | changed
    facts = {name: value for name, value in facts.items() if value is not None}
    (folder / FACTS).write_text(json.dumps(facts))


def restore(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Other tensors under the same facts, with a digest that fits."""
    save_file(tensors, folder / TENSORS)
    rewrite(folder, tensors_sha256=anchor_file._digest(folder / TENSORS))


def test_the_files_are_the_documented_ones(folder: Path, anchor: Anchor) -> None:
    assert sorted(file.name for file in folder.iterdir()) == [FACTS, TENSORS]
    facts = json.loads((folder / FACTS).read_text())
    assert facts["format"] == 2
    assert (facts["curvature"], facts["fisher"], facts["items"]) == ("kronecker", "sampled", anchor.items)
    assert {"base_model", "item", "data_sha256", "seed"} <= set(facts["facts"])
    assert set(facts["versions"]) == {"holdfast", "torch", "transformers", "peft"}
    assert set(facts["weights"]) == set(anchor.curvatures)
    assert facts["dtype"] == ["float64"]


def test_the_files_are_readable_as_any_new_file_is(folder: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert {file.stat().st_mode for file in folder.iterdir()} == {plain.stat().st_mode}


def test_a_shared_factor_is_stored_and_loaded_once(folder: Path) -> None:
    stored = load_file(folder / TENSORS)
    assert "model.layers.0.self_attn.q_proj/inputs.full" in stored
    assert "model.layers.0.self_attn.k_proj/inputs.full" not in stored
    loaded: dict[str, Any] = Anchor.load(folder).curvatures
    query, key = (loaded[f"model.layers.0.self_attn.{name}"] for name in ("q_proj", "k_proj"))
    assert query.inputs.matrix is key.inputs.matrix
    penalty = Penalty(lora(LLAMA, LLAMA.build()), Anchor.load(folder))
    placed: dict[str, Any] = penalty.prices[0].curvatures
    assert (
        placed["model.layers.0.self_attn.q_proj"].inputs.matrix
        is placed["model.layers.0.self_attn.v_proj"].inputs.matrix
    )


def test_saving_again_replaces(folder: Path) -> None:
    other = anchor_of(LLAMA.build(), fisher="data")
    other.save(folder)
    assert Anchor.load(folder).fisher == "data"


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("stage", ["write", "rename"])
def test_an_interrupted_save_leaves_the_old_anchor(
    folder: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], stage: str
) -> None:
    other = anchor_of(LLAMA.build(), fisher="data")

    def interrupted(*_: Any, **__: Any) -> None:
        raise error(errno.ENOSPC, "No space left on device")

    if stage == "write":
        monkeypatch.setattr(anchor_file, "_digest", interrupted)
    else:
        plain = Path.rename

        def rename(path: Path, target: Any) -> Path:  # the second of the two renames fails
            return interrupted() if Path(target) == folder and not path.name.endswith(".old") else plain(path, target)

        monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(HoldfastError if error is OSError else error):
        other.save(folder)
    monkeypatch.undo()
    assert Anchor.load(folder).fisher == "sampled"
    assert [file.name for file in folder.parent.iterdir()] == ["anchor"]


def test_other_peoples_files_are_not_replaced(anchor: Anchor, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(HoldfastError, match=r"notes\.txt"):
        anchor.save(tmp_path)
    with pytest.raises(HoldfastError, match="a file stands where"):
        anchor.save(tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(HoldfastError, match="is not an anchor"):
            Anchor.load(path)
    (tmp_path / "file").write_text("text")
    with pytest.raises(HoldfastError, match="is not an anchor"):
        Anchor.load(tmp_path / "file")


@pytest.mark.parametrize("name", [FACTS, TENSORS])
@pytest.mark.parametrize("keep", [0, 10, -1])
def test_a_truncated_file_is_refused(folder: Path, name: str, keep: int) -> None:
    whole = (folder / name).read_bytes().rstrip()
    (folder / name).write_bytes(whole[:keep])
    with pytest.raises(HoldfastError, match="is broken"):
        Anchor.load(folder)


def test_a_missing_file_is_refused(folder: Path) -> None:
    (folder / TENSORS).unlink()
    with pytest.raises(HoldfastError, match=f"{TENSORS} is missing"):
        Anchor.load(folder)


def test_a_changed_file_is_refused(folder: Path) -> None:
    data = bytearray((folder / TENSORS).read_bytes())
    data[-1] ^= 1
    (folder / TENSORS).write_bytes(data)
    with pytest.raises(HoldfastError, match="truncated or changed"):
        Anchor.load(folder)


@pytest.mark.parametrize("text", ["[]", "3", '{"format": 2}', "\udcff"])
def test_facts_that_are_none_are_refused(folder: Path, text: str) -> None:
    (folder / FACTS).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(HoldfastError, match="is broken"):
        Anchor.load(folder)


def test_another_format_is_named_with_its_writer(folder: Path) -> None:
    rewrite(folder, format=3, versions={"holdfast": "9.9"})
    with pytest.raises(HoldfastError, match=r"(?s)format 3.*holdfast 9\.9"):
        Anchor.load(folder)


def test_an_unknown_curvature_is_named(folder: Path) -> None:
    rewrite(folder, curvature="kroneker")
    with pytest.raises(HoldfastError, match="did you mean kronecker"):
        Anchor.load(folder)


def test_a_layer_without_tensors_is_named(folder: Path) -> None:
    tensors = load_file(folder / TENSORS)
    del tensors["model.layers.1.mlp.up_proj/gradients.full"]
    restore(folder, tensors)
    with pytest.raises(HoldfastError, match=r"model\.layers\.1\.mlp\.up_proj"):
        Anchor.load(folder)


def test_tensors_of_another_layer_are_named(folder: Path) -> None:
    restore(folder, load_file(folder / TENSORS) | {"model.layers.7.mlp.up_proj/gradients.full": torch.eye(12)})
    with pytest.raises(HoldfastError, match=r"unknown layers: model\.layers\.7\.mlp\.up_proj"):
        Anchor.load(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    restore(folder, load_file(folder / TENSORS) | {"model.layers.1.mlp.up_proj/gradients.full": torch.eye(11)})
    with pytest.raises(HoldfastError, match=r"model\.layers\.1\.mlp\.up_proj"):
        Anchor.load(folder)


def test_no_layer_at_all_is_refused(folder: Path) -> None:
    restore(folder, {})
    rewrite(folder, weights={}, layers={})
    with pytest.raises(HoldfastError, match="no layer"):
        Anchor.load(folder)


def test_a_loaded_anchor_prices_as_the_saved_one(anchor: Anchor, folder: Path) -> None:
    model = lora(LLAMA, LLAMA.build())
    penalties = [Penalty(model, one, damping=0.1) for one in (anchor, Anchor.load(folder))]
    move(model)
    first, second = (penalty() for penalty in penalties)
    assert_close(first, second, rtol=0, atol=0)
