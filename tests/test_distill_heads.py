"""Distillation and replay on every head and adapter, against slow twins of one input at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapted import move
from heads import HEADS, Head, together
from laws import EXACT
from networks import NETWORKS
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from penalising import STRENGTH, gradients_of
from torch import Tensor, nn
from torch.testing import assert_close

from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.likelihoods.gaussian import Gaussian
from holdfast.penalties.distill import Distill
from holdfast.penalties.replay import Replay
from holdfast.pretrained import teaching

LENGTHENS = ("llama-prefix", "llama-prompt")  # their virtual tokens speak from the first step on
LABELLED = {name: head for name, head in HEADS.items() if "labels" in head.rows[0]}
each_head = pytest.mark.parametrize("name", HEADS)


def distilling(name: str, model: nn.Module, batches: list[Any] | None = None, **options: Any) -> Distill:
    """A penalty on two inputs a step."""
    head = HEADS[name]
    options = {"sequences": 2, "progress": False} | options
    return Distill(model, [head.batch()] if batches is None else batches, STRENGTH, **options)


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What is known of target inputs."""
    return {name: value for name, value in batch.items() if name != "labels"}


def outputs(model: nn.Module, row: dict[str, Tensor]) -> Any:
    """One input alone, without padding or mask."""
    inputs = {name: value[None] for name, value in row.items() if name != "labels"}
    if "input_values" in inputs:  # as the batch has it, since the extractor may treat masked recordings apart
        inputs["attention_mask"] = torch.ones_like(inputs["input_values"], dtype=torch.long)
    return model(**inputs, output_hidden_states=True)


def divergence_of(head: Head, model: nn.Module, rows: list[dict[str, Tensor]]) -> Tensor:
    """The mean over items, by the formulas and one input at a time; the teacher is a model that never was adapted."""
    plain, terms, top, bottom = head.build(), [], 0.0, 0.0
    for row in rows:
        with torch.no_grad():
            teacher = outputs(plain, row)
        student = outputs(model, row)
        if head.kind == "Features":
            there, here = teacher.last_hidden_state[0], student.last_hidden_state[0]
            top, bottom = top + (here - there).square().sum(), bottom + there.square().sum()
            continue
        there, here = teacher.logits[0], student.logits[0]
        if head.item == "token":
            here = here[-len(there) :]  # prompt tuning's virtual tokens come first
        if head.item == "token" and "labels" not in row:  # a causal model's last position predicts nothing
            there, here = there[:-1], here[:-1]
        if head.kind == "Gaussian":
            terms.append((here - there).square().sum() / 2)
        elif head.kind == "Bernoulli":
            p, q = there.sigmoid(), here.sigmoid()
            terms.append((p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum())
        else:
            p, q = there.softmax(dim=-1), here.softmax(dim=-1)
            kl = (p * (p / q).log()).sum(dim=-1)
            terms += list(kl) if head.item == "token" else [kl.sum()]  # utterances: the sum over frames
    return torch.stack(terms).mean() if terms else top / bottom


@each_head
def test_distillation_equals_its_slow_twin(name: str) -> None:
    head = HEADS[name]
    model = move(head.adapted())
    penalty = distilling(name, model)
    for step in range(2):
        penalty.step = step
        rows = [head.rows[index] for index in penalty.source.chosen(step)]
        value, wanted = penalty(), STRENGTH * divergence_of(head, model, rows)
        # BERT's padding mask moves its outputs in the last bits.
        assert_close(value, wanted, rtol=1e-8, atol=0)
        found, expected = gradients_of(value, model), gradients_of(wanted, model)
        for parameter, gradient in expected.items():
            assert gradient is not None, parameter
            assert_close(found[parameter], gradient, rtol=1e-7, atol=1e-9 * float(gradient.abs().max()))


@each_head
def test_the_start_is_no_divergence(name: str) -> None:
    model = HEADS[name].adapted()
    penalty = distilling(name, model)
    value = penalty()
    assert value.requires_grad
    if name in LENGTHENS:
        assert float(value.detach()) > 0
    else:
        assert_close(value, torch.zeros_like(value), rtol=0, atol=1e-12)
        for gradient in gradients_of(value, model).values():
            assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-9)


@each_head
@pytest.mark.parametrize("on", [None, "features"])
def test_the_gradient_reaches_what_is_trained_and_nothing_else(name: str, on: Any) -> None:
    model = move(HEADS[name].adapted())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    distilling(name, model, on=on).add_gradient()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0}
    # Hidden states come before the head.
    heads = {n for n in trained if on == "features" and ("classifier" in n or "lm_head" in n)}
    assert reached == trained - heads
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trained


@each_head
def test_inputs_need_no_labels(name: str) -> None:
    head = HEADS[name]
    model = move(head.adapted())
    labelled, bare = (distilling(name, model, [one]) for one in (head.batch(), without_labels(head.batch())))
    for step in range(2):
        labelled.step = bare.step = step
        assert_close(bare(), labelled(), **EXACT)


@each_head
def test_padding_and_batches_of_the_source_do_not_matter(name: str) -> None:
    head = HEADS[name]
    model = move(head.adapted())
    whole = distilling(name, model)
    apart = distilling(name, model, [head.batch(head.rows[:1], extra=2), head.batch(head.rows[1:], extra=1)])
    # Transcripts keep their padding: it is what the labels themselves say.
    inputs = [[without_labels(row) for row in penalty.source.rows] for penalty in (apart, whole)]
    assert_close(*inputs, rtol=0, atol=0)
    whole.step = apart.step = 1
    assert_close(apart(), whole(), rtol=0, atol=0)


@each_head
def test_stored_answers_are_the_live_teacher(name: str) -> None:
    model = HEADS[name].adapted()
    live, stored = distilling(name, model), distilling(name, model, top_k=100)  # of fewer classes: all but one
    move(model)
    for step in range(2):
        live.step = stored.step = step
        assert_close(stored(), live(), rtol=1e-5, atol=1e-10)


@each_head
def test_forecasts_are_in_nats_or_none(name: str) -> None:
    model = move(HEADS[name].adapted())
    penalty, features = distilling(name, model), distilling(name, model, on="features")
    value, distance = float(penalty().detach()) / STRENGTH, float(features().detach()) / STRENGTH
    assert features.predicted_forgetting is None
    assert_close(features.report(), {"distill_features": distance}, rtol=1e-9, atol=0)
    if HEADS[name].kind == "Features":
        assert penalty.predicted_forgetting is None
    else:
        assert_close(penalty.predicted_forgetting, value, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LABELLED)
def test_replay_is_the_loss_of_the_labels(name: str) -> None:
    head = HEADS[name]
    model = move(head.adapted())
    penalty = Replay(model, [head.batch()], STRENGTH, sequences=2)
    penalty.step, losses, items = 0, [], 0
    for row in (head.rows[index] for index in penalty.source.chosen(0)):
        logits, labels = outputs(model, row).logits, row["labels"][None]
        if head.kind == "CTC":
            frames = (torch.tensor([logits.shape[1]]), torch.tensor([labels.shape[1]]))
            losses.append(F.ctc_loss(logits.log_softmax(-1).transpose(0, 1), labels, *frames, reduction="sum"))
        elif head.kind == "Gaussian":
            losses.append((logits.flatten() - labels).square().sum() / 2)
        elif head.kind == "Bernoulli":
            losses.append(F.binary_cross_entropy_with_logits(logits, labels, reduction="sum"))
        else:
            losses.append(F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="sum"))
        items += row["labels"].numel() if head.item == "token" else 1
    assert_close(penalty(), STRENGTH * torch.stack(losses).sum() / items, rtol=1e-8, atol=0)


def test_recordings_without_a_mask_stay_without() -> None:
    """Models whose extractor normalises over time were trained without, and are given none."""
    head = HEADS["wav2vec2-ctc"]
    model = move(head.adapted())
    batches = [{"input_values": row["input_values"][None]} for row in head.rows]
    penalty = distilling("wav2vec2-ctc", model, batches)
    batch = penalty.source.batch([0, 1], model)
    assert set(batch) == {"input_values"}
    assert batch["input_values"].shape == (2, 90)  # the second ends in zeros
    assert float(penalty().detach()) > 0


def test_token_types_are_kept() -> None:
    head = HEADS["bert-sequence"]
    rows = [row | {"token_type_ids": (row["input_ids"] % 2)} for row in head.rows]
    batch = head.batch()
    types = together([{"input_ids": row["token_type_ids"]} for row in rows])["input_ids"]
    penalty = distilling("bert-sequence", head.adapted(), [batch | {"token_type_ids": types}])
    assert_close([row["token_type_ids"] for row in penalty.source.rows], [row["token_type_ids"] for row in rows])


def test_a_model_of_ones_own_distils_what_forward_loss_returns() -> None:
    network = NETWORKS["mlp"]
    model = get_peft_model(network.build(), LoraConfig(r=2, target_modules=["0", "2"])).double()

    def regression(module: nn.Module, batch: Any) -> Gaussian:
        return Gaussian(module(batch["x"]), None, sigma=0.5)

    penalty = Distill(model, network.batches(2), STRENGTH, sequences=2, forward_loss=regression, progress=False)
    move(model)
    rows = [network.rows[index] for index in penalty.source.chosen(0)]
    moved = [model(row["x"]) - network.build()(row["x"]) for row in rows]
    wanted = STRENGTH * torch.stack([one.square().sum() / (2 * 0.5**2) for one in moved]).mean()
    assert_close(penalty(), wanted, **EXACT)
    with pytest.raises(HoldfastError, match="hidden states of a transformers model"):
        Distill(model, network.batches(2), on="features", forward_loss=regression, progress=False)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bert-encoder", {"source": "self"}, "does not generate text"),
        ("vit", {"source": [{"labels": torch.tensor([1])}]}, "one of input_ids"),
        ("vit", {"on": "logits"}, "on='logits'"),
        ("vit", {"source": [torch.zeros(2, 2, 8, 8)]}, "no tensors"),
        ("vit", {"source": [{"pixel_values": torch.zeros(2, 2, 8, 8), "labels": torch.zeros(3)}]}, "first dimension"),
        ("bert-tokens", {"source": [HEADS["bert-tokens"].batch(), {"input_ids": torch.ones(1, 2)}]}, "same names"),
    ],
)
def test_bad_sources_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    options = {"source": [HEADS[name].batch()], "progress": False} | options
    with pytest.raises(HoldfastError, match=message):
        Distill(HEADS[name].adapted(), **options)


def test_unlabelled_inputs_can_not_be_rehearsed() -> None:
    head = HEADS["vit"]
    with pytest.raises(HoldfastError, match="no labels to rehearse"):
        Replay(head.adapted(), [without_labels(head.batch())])


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", "FEATURE_EXTRACTION"])
@pytest.mark.parametrize("config", [PrefixTuningConfig, PromptTuningConfig])
def test_prompts_on_heads_that_do_not_generate_can_be_switched_off(task: str, config: Any) -> None:
    name = {"SEQ_CLS": "bert-sequence", "TOKEN_CLS": "bert-tokens", "FEATURE_EXTRACTION": "bert-encoder"}[task]
    head, base = HEADS[name], HEADS[name].build()
    wanted = base(**without_labels(head.batch()))[0].detach()
    model = get_peft_model(base, config(num_virtual_tokens=2, task_type=task))
    with teaching(model), torch.no_grad():
        assert_close(model(**without_labels(head.batch()))[0], wanted, rtol=0, atol=0)
    assert "forward" not in vars(model)
    if head.item != "position":  # an encoder alone has no likelihood
        assert len(Anchor.estimate(model, [head.batch()], targets=["query"], progress=False).curvatures) == 1


@pytest.mark.parametrize("on", [None, "features"])
def test_answers_stored_of_recordings_that_are_padded_unseen_are_refused(on: Any) -> None:
    model = HEADS["wav2vec2-ctc"].adapted()
    sounds = [{"input_values": torch.randn(2, length, dtype=torch.float64)} for length in (64, 80)]
    with pytest.raises(HoldfastError, match="without an attention_mask"):
        Distill(model, sounds, 1.0, on=on, top_k=2, progress=False)
    Distill(model, sounds[:1], 1.0, on=on, top_k=2, progress=False)
    Distill(model, sounds, 1.0, on=on, progress=False)
