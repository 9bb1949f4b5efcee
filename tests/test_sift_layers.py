"""SIFT around every kind of layer: each against the dense model that is masked."""

import copy
from collections.abc import Callable

import pytest
import torch
from architectures import Convolutions, bert, convolution_1d, convolution_2d, dilated, gpt2, initialised, llama
from peft import LoraConfig, get_peft_model
from sifted import masks, perceptron, sifted, trainable
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from transformers import BertForTokenClassification

from holdfast.errors import HoldfastError
from holdfast.sift.config import SiftConfig
from holdfast.sift.finding import entries_of
from holdfast.sift.selection import select

IDS = torch.arange(10).view(2, 5)


class Norms(nn.Module):
    """Norms of three kinds between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.rms = nn.Linear(5, 6), nn.LayerNorm(6), nn.RMSNorm(6)
        self.batch, self.last = nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.batch(self.rms(torch.tanh(self.layer(self.first(x))))))


class Scaled(nn.Embedding):
    """An embedding with a lookup of its own."""

    def forward(self, ids: Tensor) -> Tensor:
        return 3.0 * super().forward(ids)


class Attention(nn.Module):
    """torch's own attention reads its output projection's weight past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention = Scaled(13, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.attention(x, x, x, need_weights=False)[0]


class Tied(nn.Module):
    """One tensor as embedding and as output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.head = nn.Embedding(13, 4), nn.Linear(4, 4), nn.Linear(4, 13, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embed(ids))))


def transposed() -> nn.Module:
    """A transposed convolution after a plain one that lies in memory channels last."""
    second = nn.ConvTranspose2d(3, 4, 3, padding=1)
    built = initialised(Convolutions(nn.Conv2d(2, 3, 3, padding=1), second, nn.Linear(4, 3)))
    return built.to(memory_format=torch.channels_last)


def logits(model: Callable[..., object], inputs: Tensor) -> Tensor:
    """Whatever the model gives, as one tensor."""
    out = model(inputs)
    return out if isinstance(out, Tensor) else out.logits  # type: ignore[attr-defined]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CASES = {
    "convolutions over time": (convolution_1d, ["first", "second"], drawn(3, 2, 9)),
    "convolutions over images": (convolution_2d, ["first", "second"], drawn(3, 2, 5, 6)),
    "dilated convolutions": (dilated, ["first", "second"], drawn(3, 2, 6, 6)),
    "transposed, channels last": (transposed, ["first", "second"], drawn(3, 2, 5, 5)),
    "norms": (lambda: initialised(Norms()), ["layer", "rms", "batch"], drawn(6, 5)),
    "own lookup, read past the layer": (lambda: initialised(Attention()), ["embed", "attention.out_proj"], IDS),
    "tied": (lambda: initialised(Tied()), ["embed"], IDS),
    "tied, by the other end": (lambda: initialised(Tied()), ["head"], IDS),
    "Conv1D": (gpt2, ["c_attn", "c_fc", "wte"], IDS),
    "llama": (llama, None, IDS),
    "bert, all kinds": (lambda: bert(BertForTokenClassification), ["query", "LayerNorm", "word_embeddings"], IDS),
}


@pytest.mark.parametrize("options", [{}, {"score": "gradient"}, {"scope": "row", "score": "gradient"}])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_kind_trains_as_the_masked_dense_model(case, options):
    build, targets, inputs = CASES[case]
    base = build()
    model = sifted(copy.deepcopy(base), targets=targets, biases=True, **options)
    torch.testing.assert_close(logits(model, inputs), logits(base, inputs), rtol=1e-13, atol=1e-14)
    optimizer = torch.optim.SGD(trainable(model), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        logits(model, inputs).square().mean().backward()
        optimizer.step()
    chosen, held = masks(model), dict(base.requires_grad_(False).named_parameters(remove_duplicate=False))
    for name in chosen:
        held[name].requires_grad_()
    for _ in range(3):
        for name in chosen:
            held[name].grad = None
        logits(base, inputs).square().mean().backward()
        with torch.no_grad():
            for name, mask in chosen.items():
                held[name].sub_(0.1 * held[name].grad * mask)
    torch.testing.assert_close(logits(model, inputs), logits(base, inputs), rtol=1e-11, atol=1e-12)
    for name, one in entries_of(model).items():
        torch.testing.assert_close(one.tensor, held[name], rtol=1e-11, atol=1e-13)
        assert not torch.equal(one.entries.increments(), torch.zeros(1).to(one.entries.values))


def test_a_tied_tensor_is_held_once_and_unloads_tied():
    base = initialised(Tied())
    model = sifted(base, targets=["embed"])
    assert len(entries_of(model)) == 1
    assert sum("values" in name for name in model.state_dict()) == 1
    with torch.no_grad():
        entries_of(model)["embed.weight"].entries.values.add_(1.0)
    model(IDS)
    bare = model.merge_and_unload()
    assert bare.head.weight is bare.embed.weight
    assert isinstance(bare.head, nn.Linear)


def test_a_layer_used_twice_chooses_by_the_sum_of_its_gradients():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.tanh(self.layer(x)))

    base, x = initialised(Twice()), drawn(5, 4)
    model = sifted(copy.deepcopy(base), targets=["layer"], score="gradient", density=0.25)
    model(x)  # a pass that nobody goes back through
    model(x).square().mean().backward()
    base(x).square().mean().backward()
    entries = entries_of(model)["layer.weight"].entries
    gradient = base.layer.weight.grad.flatten()
    torch.testing.assert_close(entries.indices.long(), gradient.abs().topk(4).indices.sort().values)
    torch.testing.assert_close(entries.values.grad, gradient[entries.indices], rtol=1e-12, atol=0)


@pytest.mark.parametrize(("options", "counts"), [
    ({"density": 0.1}, {"0.weight": 4, "2.weight": 6, "4.weight": 3}),
    ({"density": 1e-9}, {"0.weight": 1, "2.weight": 1, "4.weight": 1}),
    ({"count": 13}, {"0.weight": 4, "2.weight": 6, "4.weight": 3}),
    ({"count": 1}, {"0.weight": 0, "2.weight": 1, "4.weight": 0}),
    ({"density": 0.2, "scope": "row"}, {"0.weight": 7, "2.weight": 9, "4.weight": 6}),
    ({"density": 0.1, "scope": "global", "score": "magnitude"}, {"0.weight": 3, "2.weight": 6, "4.weight": 3}),
])  # fmt: skip
def test_as_many_entries_as_asked_for(options, counts):
    model = sifted(perceptron(), **options)
    found = entries_of(model)
    assert {name: len(one.entries.indices) for name, one in found.items()} == counts
    if options.get("scope") == "global":  # these are to be exchanged among the tensors, none is lost
        assert select(model).count == sum(counts.values())
    if options.get("scope") == "row":
        assert (masks(sifted(perceptron(), **options))["0.weight"].sum(dim=1) == 1).all()


@pytest.mark.parametrize("score", ["gradient", "random", "magnitude"])
@pytest.mark.parametrize(
    "options", [{"count": 20}, {"density": 0.2, "scope": "row"}, {"count": 20, "scope": "global"}]
)
def test_a_model_without_weights_counts_the_same(score, options):
    with torch.device("meta"):
        bare = sifted(perceptron(), score=score, **options)
    whole = sifted(perceptron(), score=score, **options)
    assert [p.numel() for p in trainable(bare)] == [p.numel() for p in trainable(whole)]


class Codes(torch.Tensor):
    """A tensor that is not what it looks like, as quantisers make them."""


def refused() -> dict[str, tuple[nn.Module, str]]:
    packed = nn.Linear(4, 4).requires_grad_(False)
    packed.weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    coded = nn.Linear(4, 4).requires_grad_(False)
    coded.weight = nn.Parameter(torch.zeros(4, 4).as_subclass(Codes), requires_grad=False)
    small = nn.Linear(4, 4)
    small.weight = nn.Parameter(torch.zeros(4, 4).to(torch.float8_e4m3fn), requires_grad=False)
    adapted = get_peft_model(nn.Sequential(nn.Linear(4, 4)), LoraConfig(target_modules=["0"])).base_model.model[0]
    return {
        "computed from others": (weight_norm(nn.Linear(4, 4)), "leave this layer out"),
        "packed (Codes, torch.float32)": (coded, "before it was quantised"),
        "packed (Tensor, torch.int8)": (packed, "before it was quantised"),
        "packed (Tensor, torch.float8_e4m3fn)": (small, "before it was quantised"),
        "made of other layers": (nn.Sequential(nn.Linear(4, 4)), "name those"),
        "without a weight": (nn.Tanh(), "leave this layer out"),
        "max_norm": (nn.Embedding(4, 4, max_norm=1.0), "leave this layer out"),
        "another adapter": (adapted, "layers of its own"),
    }


@pytest.mark.parametrize("why", refused())
def test_what_has_no_plain_weight_is_refused(why):
    layer, remedy = refused()[why]
    with pytest.raises(HoldfastError) as error:
        sifted(nn.ModuleDict({"one": layer}), targets=r"one$")
    assert why in str(error.value)
    assert remedy in str(error.value)


@pytest.mark.parametrize(("options", "says"), [
    ({"density": 0.0}, "a share above 0"),
    ({"density": float("nan")}, "a share above 0"),
    ({"count": 0}, "count=0"),
    ({"density": 0.01, "count": 10}, "both say how many"),
    ({"count": 2.5}, "a whole number, at least 1"),
    ({"batches": 0}, "batches=0"),
    ({"refresh": -1}, "refresh=-1"),
    ({"scope": "column"}, "one of tensor, row, global"),
    ({"decay_to": "one"}, "one of zero, start"),
    ({"scope": "global", "floor": 0.5, "ceiling": 0.1}, "0 <= floor <= ceiling <= 1"),
    ({"floor": 0.1}, "scope 'global'"),
    ({"scope": "row", "ceiling": 0.5}, "scope 'global'"),
    ({"score": "gradeint"}, "did you mean gradient"),
    ({"score": "random", "refresh": 3}, "the same entries again"),
])  # fmt: skip
def test_settings_that_say_nothing_or_too_much_are_refused(options, says):
    with pytest.raises(HoldfastError, match=says):
        SiftConfig(**options)


def test_layers_are_chosen_by_number_as_in_peft():
    model = sifted(llama(), targets=["q_proj"], layers_to_transform=[1], exclude_modules=["o_proj"])
    assert list(entries_of(model)) == ["model.layers.1.self_attn.q_proj.weight"]


def test_an_adapter_for_each_row_is_refused():
    model = sifted(llama(), targets=["q_proj"])
    with pytest.raises(HoldfastError, match="one pass for each adapter"):
        model(input_ids=IDS, adapter_names=["default", "__base__"])


def test_copies_of_data_parallel_are_refused():
    model = sifted(perceptron(), targets=("0",))
    copied = model.base_model.model[0]._replicate_for_data_parallel()
    with pytest.raises(HoldfastError, match="torchrun"):
        copied(torch.zeros(1, 5))
