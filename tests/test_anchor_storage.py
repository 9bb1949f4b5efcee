"""A real anchor in each storage: sizes, prices, positive curvature."""

import weakref
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from laws import dense, drawn
from networks import NETWORKS
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.anchors import file as anchor_file
from holdfast.anchors import tensor_file
from holdfast.anchors.packing import Piece
from holdfast.curvature.curvature import Curvature
from holdfast.curvature.two_sided import TwoSided
from holdfast.errors import HoldfastError
from holdfast.models import shipped

HEADER = 1.02  # names, counts and diagonals beside the triangles
PRICED = 6 * 2**-9  # of a price: EKFAC's has five factors that are rounded
MEASURED = [name for name in catalogue.names("curvature") if catalogue.curvature(name).statistics()]
KINDS = [(name, "full") for name in MEASURED if catalogue.curvature(name).rounds]
KINDS += [("kronecker", storage) for storage in ("blocks:3", "low-rank:4", "diagonal")]


@pytest.fixture(scope="module")
def anchor() -> Anchor:
    """The shipped model's, from fewer rows than its widest factor has columns: that factor is singular."""
    model = AutoModelForCausalLM.from_pretrained(shipped(), dtype=torch.float32)
    ids = torch.randint(0, model.config.vocab_size, (4, 64), generator=torch.Generator().manual_seed(0))
    return Anchor.estimate(model, [{"input_ids": ids}], progress=False)


def bytes_of(folder: Path) -> int:
    """The file of tensors."""
    return (folder / anchor_file.TENSORS).stat().st_size


def unpacked(anchor: Anchor) -> int:
    """Bytes of the anchor's tensors in memory, shared ones once."""
    tensors = [t for c in anchor.curvatures.values() for t in c.tensors().values()]
    return sum(t.nbytes for t in {t.data_ptr(): t for t in tensors}.values())


def test_sizes(anchor: Anchor, tmp_path: Path) -> None:
    anchor.save(tmp_path / "float32")
    anchor.save(tmp_path / "bfloat16", dtype=torch.bfloat16)
    plain, half = bytes_of(tmp_path / "float32"), bytes_of(tmp_path / "bfloat16")
    widths = [c.gradients.width for c in anchor.curvatures.values() if isinstance(c, TwoSided)]
    assert_close(plain / unpacked(anchor), 0.5, rtol=HEADER - 1 + 1 / min(widths), atol=0)
    assert_close(half / unpacked(anchor), 0.25, rtol=HEADER - 1 + 3 / min(widths), atol=0)


def test_float32_storage_changes_nothing(anchor: Anchor, tmp_path: Path) -> None:
    for dtype in (None, torch.float32):
        anchor.save(tmp_path / "anchor", dtype=dtype)
        loaded = Anchor.load(tmp_path / "anchor")
        for name, curvature in anchor.curvatures.items():
            assert_close(loaded.curvatures[name].tensors(), curvature.tensors(), rtol=0, atol=0)
        assert (loaded.items, loaded.facts, loaded.weights) == (anchor.items, anchor.facts, anchor.weights)


def test_bfloat16_storage_keeps_prices_counts_and_diagonals(anchor: Anchor, tmp_path: Path) -> None:
    anchor.save(tmp_path / "anchor", dtype=torch.bfloat16)
    loaded = Anchor.load(tmp_path / "anchor")
    for layer, curvature in anchor.curvatures.items():
        again = loaded.curvatures[layer]
        assert isinstance(curvature, TwoSided)
        assert isinstance(again, TwoSided)
        assert_close(again.rows, curvature.rows, rtol=0, atol=0)
        assert_close(again.inputs.diagonal(), curvature.inputs.diagonal(), rtol=0, atol=0)
        assert_close(again.gradients.diagonal(), curvature.gradients.diagonal(), rtol=0, atol=0)
        up, down = (
            drawn(seed, *shape).float() for seed, shape in enumerate(zip(curvature.shape, (2, 2), strict=True))
        )
        prices = [(c.thin(up, down.T.contiguous())[0] * up).sum() for c in (curvature, again)]
        assert_close(prices[1], prices[0], rtol=PRICED, atol=0)
    assert loaded.items == anchor.items


def test_bfloat16_storage_stays_positive(anchor: Anchor, tmp_path: Path) -> None:
    anchor.save(tmp_path / "anchor", dtype=torch.bfloat16)
    for curvature in Anchor.load(tmp_path / "anchor").curvatures.values():
        for matrix in (t.double() for name, t in curvature.tensors().items() if name.endswith("full")):
            smallest = torch.linalg.eigvalsh(matrix).min() / matrix.diagonal().max()
            assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=1e-6)  # float32 products


def test_other_storage_is_refused(anchor: Anchor, tmp_path: Path) -> None:
    with pytest.raises(HoldfastError, match=r"(?s)stored as torch\.float16.*bfloat16"):
        anchor.save(tmp_path / "anchor", dtype=torch.float16)
    assert list(tmp_path.iterdir()) == []


def in_float64(curvature: Curvature) -> Curvature:
    """The same numbers, for products without rounding."""
    wide = {n: t.double() if t.is_floating_point() else t for n, t in curvature.tensors().items()}
    return type(curvature).from_tensors(wide)


@pytest.mark.parametrize("network", ["llama", "embedding"])
@pytest.mark.parametrize(("kind", "storage"), KINDS)
def test_every_kind_stays_positive_in_half_the_space(kind: str, storage: str, network: str, tmp_path: Path) -> None:
    tiny = NETWORKS[network]
    options: dict[str, Any] = {"targets": tiny.targets, "forward_loss": tiny.forward_loss, "progress": False}
    anchor = Anchor.estimate(tiny.build(), tiny.batches(2), curvature=kind, storage=storage, fisher="data", **options)
    anchor.save(tmp_path / "anchor", dtype=torch.bfloat16)
    for name, curvature in Anchor.load(tmp_path / "anchor").curvatures.items():
        again, before = dense(in_float64(curvature)), dense(anchor.curvatures[name])
        scale = before.abs().max()
        assert_close(again / scale, before / scale, rtol=0, atol=PRICED)
        smallest = torch.linalg.eigvalsh((again + again.T) / 2).min() / scale
        assert_close(smallest.clamp(max=0), torch.zeros_like(smallest), rtol=0, atol=1e-6)  # of float32


def test_a_band_of_blocks_is_not_rounded(tmp_path: Path) -> None:
    llama = NETWORKS["llama"]
    band = Anchor.estimate(llama.build(), llama.batches(2), curvature="tridiagonal", progress=False)
    with pytest.raises(HoldfastError, match=r"(?s)'tridiagonal' would not stay positive.*float32"):
        band.save(tmp_path / "anchor", dtype=torch.bfloat16)
    band.save(tmp_path / "anchor")
    for name, curvature in Anchor.load(tmp_path / "anchor").curvatures.items():
        assert_close(curvature.tensors(), band.curvatures[name].tensors(), rtol=0, atol=0)


def test_the_streamed_file_is_what_the_library_reads(tmp_path: Path) -> None:
    tensors = {
        "odd": torch.arange(3, dtype=torch.bfloat16),
        "wide": drawn(0, 2, 3),
        "count": torch.tensor([7]),
        "scalar": torch.tensor(2.5),
        "none": torch.zeros(0, 4),
        "small": torch.tensor([True, False, True]),
    }
    tensor_file.write(tmp_path / "f", {n: Piece(t.dtype, tuple(t.shape), lambda t=t: t) for n, t in tensors.items()})
    assert_close(load_file(tmp_path / "f"), tensors, rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="not what the header says"):
        tensor_file.write(tmp_path / "f", {"x": Piece(torch.float32, (2,), lambda: torch.zeros(3))})


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path) -> None:
    made: list[weakref.ref[Any]] = []
    alive: list[int] = []

    def make() -> torch.Tensor:
        alive.append(sum(one() is not None for one in made))
        memory = numpy.ones(1000, dtype=numpy.float32)
        made.append(weakref.ref(memory))
        return torch.from_numpy(memory)

    tensor_file.write(tmp_path / "f", {str(number): Piece(torch.float32, (1000,), make) for number in range(5)})
    assert alive == [0] * 5  # of those before
