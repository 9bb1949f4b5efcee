"""The identity of a weight: hashes as files hold them, taken once, and none passes for another in any precision."""

import gc
import hashlib
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from adapted import lora
from networks import NETWORKS
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast import fingerprint as module
from holdfast.anchor import Anchor
from holdfast.fingerprint import alike, fingerprint, identical
from holdfast.penalties.quadratic import Penalty

LLAMA = NETWORKS["llama"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int8]
SHAPES = [(0,), (1,), (3, 5), (64, 64), (2, 3, 4, 5), (module.CHUNK + 7,)]


def weight(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal entries, or whole numbers of a packed weight."""
    entries = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return entries.to(dtype) if dtype.is_floating_point else (20 * entries).clamp(-120, 120).to(torch.int8).view(dtype)


def by_copies(tensor: Tensor) -> dict[str, Any]:
    """What files hold, read off a copy of the whole tensor."""
    raw = tensor.detach().contiguous().cpu()
    flat = raw.flatten().double()
    return {
        "sha256": hashlib.sha256(raw.view(torch.uint8).numpy().tobytes() if raw.numel() else b"").hexdigest(),
        "dtype": str(raw.dtype).removeprefix("torch."),
        "shape": list(raw.shape),
        "sample": flat[:: max(1, flat.numel() // 64)][:64].tolist(),
        "norm": float(flat.norm()),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_files_go_on_naming_the_same_weights(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    whole = weight(*shape, dtype=dtype)
    for tensor in (whole, nn.Parameter(whole, requires_grad=False), whole.transpose(0, -1), whole[..., 1:], whole[1:]):
        found, wanted = fingerprint(tensor), by_copies(tensor)
        assert_close(found["norm"], wanted.pop("norm"), rtol=1e-12, atol=0)
        assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("count", [1, 128, 129, 4096, 3 * 10**9])
def test_scattered_places_are_all_of_the_weights(count: int) -> None:
    places = module._places(count)
    assert places == sorted(places)
    assert len(places) == min(count, module.SCATTERED_ENTRIES)
    assert 0 <= places[0] <= places[-1] < count


def test_scattered_places_are_those_of_stored_files() -> None:
    assert module._places(4096)[:8] == [27, 56, 77, 104, 144, 172, 217, 233]


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that were hashed, in order."""
    seen: list[Tensor] = []
    measured = module._measured

    def watched(tensor: Tensor) -> dict[str, Any]:
        seen.append(tensor)
        return measured(tensor)

    monkeypatch.setattr(module, "_measured", watched)
    return seen


def test_a_penalty_hashes_each_weight_once(hashed: list[Tensor]) -> None:
    first, second = (
        Anchor.estimate(LLAMA.build(), LLAMA.batches(2), seed=seed, targets=["q_proj"], progress=False)
        for seed in range(2)
    )
    hashed.clear()
    model = lora(LLAMA, LLAMA.build(), target_modules=["q_proj"])
    Penalty(model, [first, second], forecast=first)
    assert len(hashed) == len(first.weights)


EDITS: dict[str, Callable[[Any], Any]] = {
    "in place": lambda w: w.add_(1e-6),
    "in place by what has no gradient": lambda w: w.detach().add_(1e-6),
    "one entry past the version counter": lambda w: w.data[3].copy_(w.data[3] + 1e-6),
    "as PEFT merges": lambda w: setattr(w, "data", w.data.add_(1e-6)),
    "by other data": lambda w: setattr(w, "data", w.data + 1e-6),
    "all signs": lambda w: w.data.neg_(),
    "a power of two": lambda w: w.data.mul_(2),
    "another precision": lambda w: setattr(w, "data", w.data.to(torch.bfloat16)),
    "another shape": lambda w: setattr(w, "data", w.data.reshape(-1, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_weight_is_hashed_again(edit: str, dtype: torch.dtype) -> None:
    parameter = nn.Parameter(weight(64, 64, dtype=dtype))
    before = fingerprint(parameter)
    with torch.no_grad():
        EDITS[edit](parameter)
    found = fingerprint(parameter)
    assert found != before
    assert found["sha256"] == by_copies(parameter)["sha256"]


@pytest.mark.parametrize("shape", [(64, 64), (3, 5)])
def test_what_is_remembered_of_a_weight_goes_with_it(shape: tuple[int, ...], hashed: list[Tensor]) -> None:
    parameter = nn.Parameter(weight(*shape))
    remembered = len(module._known)
    assert fingerprint(parameter) == fingerprint(parameter)
    alive = weakref.ref(parameter)
    hashed.clear()
    del parameter
    gc.collect()
    assert alive() is None
    assert len(module._known) <= remembered


def test_what_is_handed_out_is_the_callers_own() -> None:
    tensor = weight(64, 64)
    fingerprint(tensor)["sha256"] = "another"
    assert fingerprint(tensor)["sha256"] == by_copies(tensor)["sha256"]


def test_inference_tensors_are_hashed() -> None:
    with torch.inference_mode():
        tensor = weight(64, 64)
        assert fingerprint(tensor)["sha256"] == by_copies(tensor)["sha256"]


def columns(tensor: Tensor) -> Tensor:
    """Every other column replaced by others of the same size: the first one stays."""
    tensor[:, 1::2] = tensor[:, 1::2].flip(0)
    return tensor


@pytest.mark.parametrize("size", [64, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_an_edited_weight_is_another_in_every_precision(dtype: torch.dtype, size: int) -> None:
    known = fingerprint(weight(size, size))
    edited = columns(weight(size, size))
    assert identical(weight(size, size).to(dtype), known)
    assert not identical(edited.to(dtype), known)
    assert not alike(edited.to(dtype), known)
    assert not alike(edited, known)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_files_without_scattered_entries_are_read(dtype: torch.dtype) -> None:
    known = by_copies(weight(64, 64))
    assert identical(weight(64, 64).to(dtype), known)
    assert alike(weight(64, 64), known)
    larger = weight(64, 64)
    larger[:, 1::2] *= 1.1  # the stored entries are all of the first column, but the norm is not
    assert not identical(larger.to(dtype), known)


def test_a_cast_weight_of_constants_is_the_same() -> None:
    """Rounded all in one direction, which moves the norm as far as it can."""
    constant = torch.full((64, 64), 1.0039)
    assert identical(constant.bfloat16(), fingerprint(constant))
    assert identical(constant, fingerprint(constant.bfloat16()))
    tiny = torch.full((64, 64), 1e-8)
    assert identical(tiny.half(), fingerprint(tiny))
