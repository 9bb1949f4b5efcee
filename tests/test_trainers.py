"""Inside trainers: the multiplier is 1, evaluation is untouched, logs are apart, runs resume exactly."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trainer_worker as worker
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback
from two_processes import in_two

import holdfast
from holdfast.penalties.regularizer import Regularizer

ROUNDING = 1e-11  # of a float64 step against autograd's gradient
FLOAT32 = 1e-4  # of a float32 step of length 1 under bfloat16 autocast: weight-space terms stay in full precision
BFLOAT16 = 0.05  # of a function-space term, whose forward passes run in bfloat16
CLIPPING = 1e-3  # torch adds 1e-6 to the norm it divides by, here 1e-3
PROCESSES = (1, 2)
WAYS = ("callback", "attach")
Table = dict[int, dict[str, dict[str, float]]]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Processes -> case -> figures: all cases here, and all of them again in two processes under torchrun."""
    out = tmp_path_factory.mktemp("measured") / "table.json"
    return {1: worker.table(), 2: in_two(worker.__file__, out)}


def check_multiplier(figures: dict[str, float], tolerance: float) -> None:
    torch.testing.assert_close(figures["multiplier"], 1.0, rtol=0, atol=tolerance)
    torch.testing.assert_close(figures["residual"], 0.0, rtol=0, atol=tolerance)
    torch.testing.assert_close(figures["spread"], 0.0, rtol=0, atol=0)  # ranks stay in step


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", worker.TRAINERS)
def test_multiplier_is_one(table: Table, kind: str, how: str, accumulation: int, processes: int) -> None:
    check_multiplier(table[processes][f"{kind} {how} {accumulation}"], ROUNDING)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", worker.TRAINERS)
def test_multiplier_is_one_under_autocast(table: Table, kind: str, how: str, processes: int) -> None:
    check_multiplier(table[processes][f"{kind} {how} 4 bf16"], FLOAT32)


@pytest.mark.parametrize("processes", PROCESSES)
def test_multiplier_is_one_where_the_loss_is_a_mean_per_micro_batch(table: Table, processes: int) -> None:
    check_multiplier(table[processes]["Trainer attach 4 unscaled"], ROUNDING)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", worker.TRAINERS)
def test_distillation_adds_the_mean_of_the_ranks_gradients(table: Table, kind: str, how: str, processes: int) -> None:
    figures = table[processes][f"{kind} {how} 4 distill"]
    check_multiplier(figures, ROUNDING)
    if processes > 1:
        assert figures["own_spread"] > 0.1, "the ranks drew the same sequences, so their mean says nothing"


@pytest.mark.parametrize("processes", PROCESSES)
def test_distillation_under_autocast(table: Table, processes: int) -> None:
    check_multiplier(table[processes]["Trainer callback 4 distill bf16"], BFLOAT16)


@pytest.mark.parametrize("processes", PROCESSES)
@pytest.mark.parametrize("how", ["callback", "callback clip=True", "attach"])
def test_clipping(table: Table, how: str, processes: int) -> None:
    """The callback escapes clipping; clip=True clips jointly; attach is clipped with the task."""
    torch.testing.assert_close(table[processes]["clipping"][how], 0.0, rtol=0, atol=CLIPPING)


class Seen(TrainerCallback):
    """Keeps what was logged, as a tracker would."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))


def join(trainer: Any, how: str, *terms: Regularizer) -> None:
    if how == "attach":
        holdfast.attach(trainer, *terms)
    else:
        trainer.add_callback(holdfast.HoldfastCallback(*terms))


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", worker.TRAINERS)
def test_evaluation_loss_is_untouched(kind: str, how: str, tmp_path: Path) -> None:
    model = worker.lora_model()
    trainer = worker.make_trainer(
        kind, model, str(tmp_path), eval_dataset=worker.rows(seed=3), eval_strategy="steps", eval_steps=1
    )
    before = trainer.evaluate()["eval_loss"]
    join(trainer, how, worker.make_term("penalty", model, torch.float64))
    torch.testing.assert_close(trainer.evaluate()["eval_loss"], before, rtol=0, atol=0)
    trainer.train()
    during = next(entry["eval_loss"] for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    fresh = worker.make_trainer(kind, model, str(tmp_path), eval_dataset=worker.rows(seed=3))
    torch.testing.assert_close(during, fresh.evaluate()["eval_loss"], rtol=0, atol=0)


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("kind", worker.TRAINERS)
def test_logs_hold_task_loss_penalty_and_forecast_apart(kind: str, how: str, tmp_path: Path) -> None:
    settings = {"logging_strategy": "steps", "logging_steps": 1, "gradient_accumulation_steps": 2}
    plain = worker.make_trainer(kind, worker.lora_model(), str(tmp_path), **settings)
    plain.train()
    model, seen = worker.lora_model(), Seen()
    penalty = worker.make_term("penalty", model, torch.float64)
    distill = worker.make_term("distill", model, torch.float64)
    expected = float(penalty().detach())
    trainer = worker.make_trainer(kind, model, str(tmp_path), **settings)
    join(trainer, how, penalty, distill)
    trainer.add_callback(seen)
    trainer.train()
    for logged in (seen.logs[0], trainer.state.log_history[0]):
        torch.testing.assert_close(logged["loss"], plain.state.log_history[0]["loss"], rtol=0, atol=0)
        torch.testing.assert_close(logged["penalty"], expected)
        torch.testing.assert_close(logged["predicted_forgetting"], penalty.predicted_forgetting)
        torch.testing.assert_close(logged["distill_kl"], distill.report()["distill_kl"])


def test_trackers_see_the_figures_of_attach(tmp_path: Path) -> None:
    model, tracker = worker.lora_model(), Seen()
    settings = {"logging_strategy": "steps", "logging_steps": 1, "callbacks": [tracker]}
    trainer = worker.make_trainer("Trainer", model, str(tmp_path), **settings)
    holdfast.attach(trainer, worker.make_term("penalty", model, torch.float64))
    trainer.train()
    assert {"loss", "penalty", "predicted_forgetting"} <= set(tracker.logs[0])


def arguments(**chosen: Any) -> SimpleNamespace:
    return SimpleNamespace(**{"deepspeed": None, "fsdp": None, "deepspeed_plugin": None, **chosen})


@pytest.mark.parametrize(
    ("chosen", "remedy"),
    [({"deepspeed": {"zero_optimization": {"stage": 2}}}, r"holdfast\.attach"), ({"fsdp": True}, "under DDP")],
)
def test_callback_refuses_engines_that_drop_its_gradients(chosen: dict[str, Any], remedy: str) -> None:
    model = worker.lora_model()
    callback = holdfast.HoldfastCallback(worker.make_term("penalty", model, torch.float64))
    with pytest.raises(holdfast.HoldfastError, match=remedy):
        callback.on_train_begin(arguments(**chosen), None, None, model=model)


@pytest.mark.parametrize(
    ("chosen", "remedy"),
    [({"fsdp": True}, "under DDP"), ({"deepspeed_plugin": SimpleNamespace(zero_stage=3)}, "ZeRO stage 1 or 2")],
)
def test_attach_refuses_sharded_parameters(chosen: dict[str, Any], remedy: str) -> None:
    model = worker.lora_model()
    with pytest.raises(holdfast.HoldfastError, match=remedy):
        holdfast.attach(
            SimpleNamespace(args=arguments(**chosen), model=model),
            worker.make_term("penalty", model, torch.float64),
        )


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("term", ["penalty", "distill"])
def test_a_penalty_on_another_model_is_refused(how: str, term: str, tmp_path: Path) -> None:
    trainer = worker.make_trainer("Trainer", worker.lora_model(), str(tmp_path))
    elsewhere = worker.make_term(term, worker.lora_model(), torch.float64)

    def train() -> None:
        join(trainer, how, elsewhere)
        trainer.train()

    with pytest.raises(holdfast.HoldfastError, match=r"trainer\.model"):
        train()


def test_a_penalty_from_before_the_trainer_wrapped_the_model_is_refused(tmp_path: Path) -> None:
    model = worker.base_model(torch.float32)
    anchor = holdfast.Anchor.estimate(model, worker.batches(), progress=False)
    model.requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj.requires_grad_(True)
    penalty = holdfast.Penalty(model, anchor)
    trainer = worker.make_trainer("SFTTrainer", model, str(tmp_path), peft_config=worker.lora_config())
    trainer.add_callback(holdfast.HoldfastCallback(penalty))
    with pytest.raises(holdfast.HoldfastError, match="peft_config"):
        trainer.train()


@pytest.mark.parametrize("start", ["lora", "pissa", "full"])
def test_a_penalty_follows_the_model_that_a_trainer_moves(start: str) -> None:
    model = worker.base_model(torch.float32)
    anchor = holdfast.Anchor.estimate(
        model, worker.batches(), curvature="diagonal", targets=["q_proj"], progress=False
    )
    if start == "full":
        model.requires_grad_(False)
        for layer in model.model.layers:
            layer.self_attn.q_proj.requires_grad_(True)
    else:
        config = LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa" if start == "pissa" else True)
        model = get_peft_model(model, config)
    penalty = holdfast.Penalty(model, anchor)
    model.to("meta")  # stands for an accelerator: it mixes with no other device either
    assert penalty().device == torch.device("meta")


@pytest.mark.parametrize("call", [holdfast.HoldfastCallback, lambda: holdfast.attach(SimpleNamespace())])
def test_no_penalty_is_refused(call: Any) -> None:
    with pytest.raises(holdfast.HoldfastError, match="no penalty"):
        call()


@pytest.mark.parametrize("how", WAYS)
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(how: str, tmp_path: Path) -> None:
    """Bit for bit, with dropout, momentum and source sequences in play."""

    def run(resume_from: Path | None) -> dict[str, torch.Tensor]:
        model = worker.lora_model(torch.float32, dropout=0.2)
        settings = {"max_steps": 5, "save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
        terms = [worker.make_term(name, model, torch.float32) for name in ("penalty", "distill")]
        trainer = worker.make_trainer("Trainer", model, str(tmp_path), gradient_accumulation_steps=2, **settings)
        join(trainer, how, *terms)
        trainer.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
        return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}

    whole = run(None)
    torch.testing.assert_close(run(tmp_path / "checkpoint-2"), whole, rtol=0, atol=0)
