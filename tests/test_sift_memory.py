"""What SIFT keeps while it trains, under checkpointing and compiled too; and who chooses when."""

import copy
import gc
import shutil
import weakref
from typing import Any

import pytest
import torch
from architectures import checkpointed
from sifted import batches, bits, loss, masks, perceptron, sifted, train, trainable
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from holdfast.errors import HoldfastError
from holdfast.sift.finding import entries_of

WIDTH, DEPTH, EVEN = 24, 8, r"\d*[02468]"


class Alive(TorchDispatchMode):
    """How many tensors of a weight's size, made inside, were ever alive together; of booleans, a quarter each."""

    def __init__(self, entries: int) -> None:
        super().__init__()
        self.entries, self.most = entries, 0.0
        self.made: dict[int, tuple[StorageWeakRef, float]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        returned = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(returned):
            if isinstance(leaf, Tensor) and leaf.numel() == self.entries:
                storage = leaf.untyped_storage()
                if storage.data_ptr() not in given:
                    self.made[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes() / 4 / self.entries
        self.most = max(self.most, sum(size for one, size in self.made.values() if not one.expired()))
        return returned


def deep() -> nn.Module:
    """Layers of one size, with batches of another."""
    torch.manual_seed(0)
    return nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())))


def most_alive(model: nn.Module) -> float:
    value = model(torch.randn(7, WIDTH)).square().mean()
    with Alive(WIDTH * WIDTH) as watching:
        value.backward()
    return watching.most


def test_dense_gradients_are_never_there_together():
    assert most_alive(deep()) == DEPTH
    assert most_alive(sifted(deep(), targets=EVEN)) == 1
    chosen = sifted(deep(), targets=EVEN, score="gradient")
    assert most_alive(chosen) <= 3  # with the scores of that one tensor and the masks that find the highest
    assert most_alive(chosen) == 1


class Saving(nn.Module):
    """Pairs of layers whose activations are computed again."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.layers, self.reentrant = deep(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        for i in range(0, len(self.layers), 4):
            x = checkpoint(self.layers[i : i + 4], x, use_reentrant=self.reentrant)
        return x


@pytest.mark.parametrize("reentrant", [False, True])
def test_nor_while_entries_are_chosen_under_checkpointing(reentrant):
    model = sifted(Saving(reentrant), targets=rf"layers\.{EVEN}", score="gradient")
    value = model(torch.randn(7, WIDTH, requires_grad=True)).square().mean()
    with Alive(WIDTH * WIDTH) as watching:
        value.backward()
    assert all(one.entries.chosen for one in entries_of(model).values())
    assert watching.most <= 3


def test_nor_after_passes_that_nobody_went_back_through():
    model = sifted(deep(), targets=EVEN, score="gradient")
    model(torch.randn(7, WIDTH))
    assert all(layer.weight.requires_grad for layer in model.base_model.model[::2])  # read past the layer
    assert most_alive(model) <= 3


def test_a_loss_that_is_kept_does_not_keep_the_choice_waiting():
    base, x = deep(), torch.randn(7, WIDTH)
    model = sifted(copy.deepcopy(base), targets=EVEN, score="gradient")
    kept = model(x + 1.0)  # its backward pass might come yet
    model(x).square().mean().backward()
    base(x).square().mean().backward()
    for name, one in entries_of(model).items():
        gradient = base.get_parameter(name).grad.flatten()
        wanted = gradient.abs().topk(len(one.entries.indices)).indices.sort().values
        torch.testing.assert_close(one.entries.indices.long(), wanted)
        torch.testing.assert_close(one.entries.values.grad, gradient[wanted])
    assert kept.grad_fn is not None


def test_a_forward_pass_copies_no_weight():
    model = sifted(deep(), targets=EVEN)
    with Alive(WIDTH * WIDTH) as watching:
        model(torch.randn(7, WIDTH)).square().mean().backward()
    assert watching.most == 1


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 24), (torch.bfloat16, 22)])
def test_bytes_for_each_entry(dtype, most):
    model = sifted(perceptron(dtype))
    optimizer = torch.optim.AdamW(trainable(model))
    train(model, batches(1, dtype=dtype), optimizer)
    held = entries_of(model).values()
    entries = sum(len(one.entries.indices) for one in held)
    kept = [tensor for one in held for tensor in vars(one.entries).values() if isinstance(tensor, Tensor)]
    kept += [tensor for one in held for tensor in (one.entries.values, one.entries.values.grad)]
    kept += [tensor for state in optimizer.state.values() for tensor in state.values() if tensor.numel() > 1]
    assert (
        sum(tensor.nbytes for tensor in kept) - 32 * len(held) == most * entries
    )  # 32: the hash of each tensor's base


@pytest.mark.parametrize("how", ["reentrant", "recomputed"])
@pytest.mark.parametrize("score", ["gradient", "random"])
def test_checkpointing_changes_nothing(how, score):
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)  # as PEFT has the embeddings' output
    trained = {}
    for way in ("plain", how):
        model = sifted(checkpointed(way), targets=["block.0", "block.2", "head"], score=score)
        optimizer = torch.optim.AdamW(trainable(model), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
        trained[way] = masks(model), bits(model)
    plain, again = trained["plain"], trained[how]
    if (how, score) == (
        "reentrant",
        "gradient",
    ):  # a segment is a backward pass of its own: block.0 is in it and outside
        del plain[0]["block.0.weight"], again[0]["block.0.weight"]
        torch.testing.assert_close(again[0], plain[0])
        return
    torch.testing.assert_close(again, plain, rtol=1e-12, atol=1e-14)


@pytest.fixture
def compiler():
    """Torch's compiler, which keeps nothing of what it has seen before or sees here."""
    torch._dynamo.reset()
    yield torch.compile
    torch._dynamo.reset()
    gc.collect()


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_trains_as_it_does_uncompiled(backend, compiler):
    if backend == "inductor" and not (shutil.which("gcc") or shutil.which("clang") or shutil.which("c++")):
        pytest.skip("torch.compile's own backend needs a C++ compiler")
    data = batches(4)
    plain, model = sifted(perceptron(), biases=True), sifted(perceptron(), biases=True)
    train(plain, data, torch.optim.AdamW(trainable(plain), lr=1e-2))
    compiled = compiler(model, backend=backend, fullgraph=True)
    train(compiled, data, torch.optim.AdamW(trainable(model), lr=1e-2))
    torch.testing.assert_close(bits(model), bits(plain), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(compiled(data[0][0]), plain(data[0][0]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{"batches": 2}, {"scope": "global"}, {"score": lambda gradient, weight: weight}])
def test_what_one_batch_cannot_choose_is_asked_for_first(options):
    model = sifted(perceptron(), **{"score": "gradient", **options})
    with torch.no_grad():
        torch.testing.assert_close(model(batches(1)[0][0]), perceptron()(batches(1)[0][0]), rtol=0, atol=0)
    with pytest.raises(HoldfastError, match=r"'0\.weight' are not chosen yet[\s\S]*select\(model, batches\)"):
        model(batches(1)[0][0])


def test_passes_that_are_under_way_when_entries_are_chosen_count_too():
    base, data = perceptron(torch.float64), batches(2, dtype=torch.float64)
    model = sifted(copy.deepcopy(base), score="gradient")
    under_way = [loss(model, batch) for batch in data]
    for one in under_way:
        one.backward()
    dense = copy.deepcopy(base)
    loss(dense, data[0]).backward()
    first = {name: p.grad.abs().flatten() for name, p in dense.named_parameters()}
    for name, one in entries_of(model).items():
        highest = first[name].topk(len(one.entries.indices)).indices.sort().values
        torch.testing.assert_close(one.entries.indices.long(), highest)
    loss(dense, data[1]).backward()
    held = dict(dense.named_parameters())
    for name, one in entries_of(model).items():
        both = held[name].grad.flatten()[one.entries.indices]
        torch.testing.assert_close(one.entries.values.grad, both, rtol=1e-12, atol=1e-15)


def _moved(model: nn.Module) -> None:
    for one in entries_of(model).values():
        one.entries.move(one.entries.indices.flip(0))


@pytest.mark.parametrize("change", [lambda model: model.base_model.disable_adapter_layers(), _moved])
def test_going_back_through_another_state_of_the_adapter_is_refused(change):
    model = sifted(perceptron(), targets=("0",))
    value = loss(model, batches(1)[0])
    change(model)
    with pytest.raises((HoldfastError, RuntimeError), match=r"not as it was in the forward pass|inplace operation"):
        value.backward()


def test_an_observer_sees_the_dense_gradient_and_nothing_trains():
    base, data = perceptron(torch.bfloat16), batches(1, dtype=torch.bfloat16)[0]
    model = sifted(copy.deepcopy(base), score="gradient", batches=2)
    seen = {}
    for name, one in entries_of(model).items():
        one.entries.observer = lambda gradient, name=name: seen.update({name: gradient})
    loss(model, data).backward()
    loss(base, data).backward()
    torch.testing.assert_close(seen, {n: p.grad for n, p in base.named_parameters() if n in seen}, rtol=0, atol=0)
    assert len(seen) == 3
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_outlives_a_model():
    model = sifted(perceptron(), score="gradient")
    train(model, batches(2), torch.optim.AdamW(trainable(model), lr=1e-2))
    weak = [weakref.ref(one.entries) for one in entries_of(model).values()]
    del model
    gc.collect()
    assert all(one() is None for one in weak)
