"""Distillation and replay: equal to their slow twins, and the same at every step of every run."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapted import adapt, move
from laws import EXACT
from networks import IGNORED, NETWORKS, VOCABULARY, Network
from penalising import ROUNDING, STRENGTH, gradients_of
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.errors import HoldfastError
from holdfast.penalties.distill import Distill
from holdfast.penalties.replay import Replay


def kl_of(model: nn.Module, rows: list[dict[str, Tensor]], network: Network) -> Tensor:
    """Mean KL over the scored items of some sequences, one sequence, one item and one class at a time."""
    plain, terms = network.build(), []
    for row in rows:
        with torch.no_grad():
            teacher = plain(input_ids=row["input_ids"][None]).logits[0].softmax(dim=1)
        student = model(input_ids=row["input_ids"][None]).logits[0].softmax(dim=1)
        for position in range(len(row["labels"]) - 1):
            if row["labels"][position + 1] != IGNORED:
                pairs = zip(teacher[position], student[position], strict=True)
                terms.append(sum(p * (p.log() - q.log()) for p, q in pairs))
    return torch.stack(terms).mean()


def distilling(**options: Any) -> tuple[nn.Module, Distill]:
    """A moved model and its distillation; built at the start."""
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    options = {"source": network.batches(2), "weight": STRENGTH, "progress": False} | options
    penalty = Distill(model, **options)
    return move(model), penalty


def watch(penalty: Distill, model: nn.Module) -> None:
    """Let a penalty that was built on one model see another."""
    penalty.model = penalty.reader.model = model


@pytest.mark.parametrize("sequences", [1, 3])
def test_distillation_equals_its_slow_twin(sequences: int) -> None:
    network = NETWORKS["llama"]
    model, penalty = distilling(sequences=sequences)
    seen = []
    for step in range(4):
        penalty.step = step
        rows = [network.rows[index] for index in penalty.source.chosen(step)]
        value, wanted = penalty(), kl_of(model, rows, network)
        assert_close(value, STRENGTH * wanted, **EXACT)
        assert_close(gradients_of(value, model), gradients_of(STRENGTH * wanted, model), **EXACT)
        seen.append(float(wanted.detach()))
        assert_close(penalty.report()["distill_kl"], seen[-1], rtol=1e-9, atol=0)
    assert_close(penalty.predicted_forgetting, sum(seen) / len(seen), rtol=1e-9, atol=0)


def test_stored_answers_over_all_classes_are_the_live_teacher() -> None:
    model, live = distilling()
    _, stored = distilling(top_k=VOCABULARY - 1)
    watch(stored, model)
    for step in range(3):
        live.step = stored.step = step
        # The last class is what the others leave: a difference of numbers near 1.
        assert_close(stored(), live(), rtol=1e-6, atol=0)
        assert_close(gradients_of(stored(), model), gradients_of(live(), model), rtol=1e-6, atol=1e-9)


def test_fewer_stored_answers_are_a_lower_bound() -> None:
    values = []
    for top_k in (1, 3, 8, VOCABULARY - 1):
        _, penalty = distilling(top_k=top_k)
        values.append(float(penalty().detach()))
    assert values == sorted(values)
    assert values[0] > 0


def test_stored_answers_serve_a_model_without_adapters() -> None:
    network = NETWORKS["llama"]
    model = network.build()
    with pytest.raises(HoldfastError, match="top_k"):
        Distill(model, network.batches(2), progress=False)
    penalty = Distill(model, network.batches(2), STRENGTH, top_k=VOCABULARY - 1, sequences=2, progress=False)
    penalty.step = 0
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-9)
    move(model, 0.1)
    rows = [network.rows[index] for index in penalty.source.chosen(0)]
    assert_close(penalty(), STRENGTH * kl_of(model, rows, network), rtol=1e-6, atol=0)


@pytest.mark.parametrize("kind", ["distill", "replay"])
def test_every_nth_step_counts_n_times(kind: str) -> None:
    network = NETWORKS["llama"]
    made = {"distill": Distill, "replay": Replay}[kind]
    options: dict[str, Any] = {"progress": False} if kind == "distill" else {}
    model = adapt("lora", network)
    often = made(model, network.batches(2), STRENGTH, every=1, **options)
    seldom = made(model, network.batches(2), STRENGTH, every=3, **options)
    move(model)
    for step in range(7):
        seldom.step, often.step = step, step // 3
        if step % 3:
            assert float(seldom().detach()) == 0.0
            assert seldom.add_gradient() == 0.0
        else:
            assert_close(seldom(), 3 * often(), **EXACT)


def test_draws_are_a_function_of_the_step_alone() -> None:
    model, penalty = distilling(sequences=2)
    _, again = distilling(sequences=2)
    watch(again, model)
    values = []
    for step in range(6):
        penalty.step = step
        values.append(float(penalty().detach()))
    for step in (4, 1, 1, 5):
        again.step = step
        torch.manual_seed(step)
        assert float(again().detach()) == values[step]
    assert len(set(values)) > 1


def test_a_pass_sees_every_sequence_once() -> None:
    _, penalty = distilling(sequences=1)
    count = len(penalty.source.rows)
    for start in (0, count):
        assert sorted(penalty.source.chosen(start + step)[0] for step in range(count)) == list(range(count))


def test_the_teacher_leaves_the_student_as_it_was() -> None:
    model, penalty = distilling()
    model.train()
    penalty.step = 0
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    value = float(penalty().detach())
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags
    assert all(module.training for module in model.modules())
    model.eval()
    assert float(penalty().detach()) == value


def backward(value: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameter -> gradient, as training computes it; reentrant checkpoints know no other way."""
    model.zero_grad()
    value.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def dropping(kind: str, checkpointing: dict[str, Any] | None, top_k: int | None) -> tuple[nn.Module, Distill]:
    """A model in training, with dropout wherever it can have some."""
    network = NETWORKS[kind]
    model = adapt("lora", network)
    base = model.get_base_model()
    if checkpointing is not None:
        base.gradient_checkpointing_enable(checkpointing)
        base.enable_input_require_grads()
    base.config.attention_dropout = 0.1
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.1
        elif hasattr(module, "lora_dropout"):
            module.lora_dropout["default"] = nn.Dropout(0.1)
        elif isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.1
    return model.train(), Distill(model, network.batches(2), STRENGTH, sequences=3, top_k=top_k, progress=False)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
@pytest.mark.parametrize("top_k", [None, VOCABULARY])
def test_dropout_is_no_divergence(kind: str, checkpointing: dict[str, Any] | None, top_k: int | None) -> None:
    model, penalty = dropping(kind, checkpointing, top_k)
    batch = NETWORKS[kind].batches(2)[0]
    assert float(model(**batch).loss.detach()) != float(model(**batch).loss.detach())
    penalty.step = 0
    value = penalty()
    assert_close(value, torch.zeros((), dtype=torch.float64), **ROUNDING)
    found = backward(value, model)
    assert found
    for gradient in found.values():
        assert_close(gradient, torch.zeros_like(gradient), **ROUNDING)
    move(model)
    value = penalty()
    found = backward(value, model)  # checkpoints run the model again, its modes restored
    assert all(module.training for module in model.modules())
    model.eval()
    wanted = penalty()
    assert float(wanted.detach()) > 0
    assert_close(value, wanted, rtol=0, atol=0)
    assert_close(found, backward(wanted, model), **EXACT)


def test_a_pass_without_dropout_checkpoints_its_layers_still() -> None:
    model, penalty = dropping("llama", {"use_reentrant": False}, None)
    layers = [layer for layer in model.modules() if hasattr(layer, "self_attn")]
    runs = []
    for layer in layers:
        layer.mlp.register_forward_pre_hook(lambda module, args: runs.append(module.training))
    value = penalty()
    assert runs == [False] * 2 * len(layers)  # the teacher's and the student's
    value.backward()
    assert runs == [False] * 3 * len(layers)


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_model_can_be_its_own_source(top_k: int | None) -> None:
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    before = torch.get_rng_state()
    penalty = Distill(model, "self", STRENGTH, samples=6, length=8, top_k=top_k, progress=False)
    assert_close(torch.get_rng_state(), before, rtol=0, atol=0)
    assert_close(penalty(), torch.zeros((), dtype=torch.float64), **ROUNDING)
    again = Distill(model, "self", STRENGTH, samples=6, length=8, progress=False)
    assert_close(penalty.source.rows, again.source.rows, rtol=0, atol=0)
    move(model)
    assert float(penalty().detach()) > 0
    for row in penalty.source.rows:
        assert int(row["input_ids"][0]) == 0  # the token to start from
        assert 1 not in row["input_ids"][:-1].tolist()  # nothing after the token to end with
        assert len(row["input_ids"]) <= 8


def test_replay_equals_its_slow_twin() -> None:
    network = NETWORKS["llama"]
    model = move(adapt("lora", network))
    penalty = Replay(model, network.batches(2), STRENGTH, sequences=2)
    for step in range(3):
        penalty.step = step
        terms = []
        for row in (network.rows[index] for index in penalty.source.chosen(step)):
            logits = model(input_ids=row["input_ids"][None]).logits[0, :-1]
            keep = row["labels"][1:] != IGNORED
            terms.append(F.cross_entropy(logits[keep], row["labels"][1:][keep], reduction="none"))
        assert_close(penalty(), STRENGTH * torch.cat(terms).mean(), **EXACT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "old"}, "self"),
        ({"source": []}, "no sequence"),
        ({"source": [{"input_ids": torch.tensor([[3, 4]]), "labels": torch.tensor([[3, IGNORED]])}]}, "no sequence"),
        ({"source": [{"pixels": torch.zeros(2, 3)}]}, "one of input_ids"),
        ({"sequences": 0}, "at least 1"),
        ({"every": 0}, "at least 1"),
        ({"top_k": 0}, "at least 1"),
    ],
)
def test_bad_sources_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(HoldfastError, match=message):
        distilling(**options)


def test_in_a_plain_loop_every_evaluation_is_the_next_step() -> None:
    network = NETWORKS["llama"]
    model = adapt("lora", network)
    move(model)
    plain, told = (
        Distill(model, network.batches(2), STRENGTH, sequences=1, every=2, progress=False) for _ in range(2)
    )
    for step in range(6):
        told.step = step
        value = plain()
        assert_close(value, told(), rtol=0, atol=0)
        assert value.requires_grad == (step % 2 == 0)
