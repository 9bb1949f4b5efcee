"""Budgets inside trainers: the same strengths in one process and two, exact resumption, figures in the logs."""

import budget_worker
import pytest
import torch
import trainer_worker as worker
from torch.testing import assert_close
from transformers import TrainerCallback
from two_processes import in_two

import holdfast


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Processes -> case -> figures."""
    out = tmp_path_factory.mktemp("measured") / "table.json"
    return {1: budget_worker.table(), 2: in_two(budget_worker.__file__, out)}


@pytest.mark.parametrize("way", ["kronecker", "attached"])
def test_two_processes_steer_as_one(table, way):
    one, two = table[1][way], table[2][way]
    assert max(one["strengths"]) > 0.1
    assert_close(torch.tensor(two["strengths"]), torch.tensor(one["strengths"]), rtol=1e-8, atol=1e-10)
    assert_close(torch.tensor(two["weights"]), torch.tensor(one["weights"]), rtol=1e-7, atol=1e-9)
    assert two["measured"] == pytest.approx(one["measured"], rel=1e-8)


@pytest.mark.parametrize("way", [*budget_worker.WAYS, "attached"])
@pytest.mark.parametrize("processes", [1, 2])
def test_the_end_is_inside_and_alike_on_all_ranks(table, way, processes):
    figures = table[processes][way]
    assert figures["spread"] == 0.0
    least = 0.0 if way == "distill" else 0.3  # what sees a few sequences a step is patient, and this run is short
    assert least * budget_worker.BUDGET < figures["measured"] <= budget_worker.BUDGET
    assert figures["steps"] == budget_worker.STEPS


class Stop(TrainerCallback):
    """Ends training at a step, as a kill would."""

    def __init__(self, at):
        self.at = at

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.at:
            raise KeyboardInterrupt


def test_a_resumed_trainer_steers_on_to_the_bit(tmp_path):
    whole, weights = _train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "cut", stop=7)
    again, other = _train(tmp_path / "cut", resume=True)
    assert again.state() == whole.state()
    assert_close(other, weights, rtol=0, atol=0)


def _train(folder, stop=None, resume=False):
    model = budget_worker.start()
    held_out = [{"input_ids": torch.tensor(worker.rows(16, seed=2)["input_ids"])[i : i + 2]} for i in range(0, 16, 2)]
    penalty = holdfast.Distill(model, worker.batches(), 1.0, progress=False).keep_within(1.0, held_out)
    callbacks = [holdfast.HoldfastCallback(penalty), *([Stop(stop)] if stop else [])]
    trainer = worker.make_trainer(
        "Trainer", model, str(folder), max_steps=10, learning_rate=0.05, save_strategy="steps", save_steps=5,
        callbacks=callbacks, seed=0,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return penalty, worker.flat(worker.trained(model))


def test_the_logs_hold_what_steers(tmp_path):
    model = budget_worker.start()
    held_out = [{"input_ids": torch.tensor(worker.rows(16, seed=2)["input_ids"])}]
    anchor = holdfast.Anchor.estimate(model, worker.batches(), targets=worker.TARGETS, progress=False)
    penalty = holdfast.Penalty(model, anchor).keep_within(1.0, held_out)
    trainer = worker.make_trainer(
        "Trainer", model, str(tmp_path), max_steps=30, learning_rate=0.05, logging_strategy="steps", logging_steps=1,
        callbacks=[holdfast.HoldfastCallback(penalty)],
    )  # fmt: skip
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert {"penalty", "predicted_forgetting", "strength", "calibrated_forecast"} <= set(logs[-1])
    assert any("measured_forgetting" in entry for entry in logs)
    assert max(entry["strength"] for entry in logs) > 0
