"""SIFT under transformers' Trainer: accumulation, evaluation, checkpoints, resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from architectures import VOCABULARY, llama
from datasets import Dataset
from peft import PeftModel
from sifted import bits, sifted
from transformers import Trainer, TrainerCallback, TrainingArguments

from holdfast.sift.finding import entries_of

STEPS = 4
TARGETS = ["q_proj", "o_proj", "down_proj"]


def rows(count: int = 32) -> Dataset:
    """Sequences of random tokens."""
    drawn = torch.randint(VOCABULARY, (count, 6), generator=torch.Generator().manual_seed(3)).tolist()
    return Dataset.from_list([{"input_ids": row, "labels": row} for row in drawn])


def run(model: PeftModel, out: Path, accumulation: int = 1, callbacks: Any = (), **options: Any) -> Trainer:
    """A short training; the learning rate is the same to the end, so that a run can be cut."""
    arguments = TrainingArguments(
        output_dir=str(out),
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        learning_rate=1e-2,
        weight_decay=0.1,
        lr_scheduler_type="constant",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        **{"save_strategy": "no", **options},
    )
    return Trainer(model, args=arguments, train_dataset=rows(), eval_dataset=rows(4), callbacks=list(callbacks))


def fresh(score: str = "gradient", **options: Any) -> PeftModel:
    """The same model each time."""
    return sifted(llama().float(), targets=TARGETS, score=score, **options)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_every_tensor_trains_the_first_as_the_last(tmp_path, accumulation):
    model = fresh()
    before = bits_of_base(model)
    run(model, tmp_path, accumulation).train()
    for name, one in entries_of(model).items():
        changed = (one.tensor != before[name]).sum()
        assert changed > 0.9 * len(one.entries.indices), name
        moved = one.entries.increments().detach().abs().mean()
        assert 1e-2 < moved < 1.5 * STEPS * 1e-2, name  # Adam takes steps of about the learning rate


def bits_of_base(model: PeftModel) -> dict[str, Any]:
    """The tensors without the adapter."""
    with model.disable_adapter():
        return bits(model)


def test_accumulation_under_the_trainer_is_a_larger_batch(tmp_path):
    whole, parted = fresh("random"), fresh("random")
    run(whole, tmp_path / "whole").train()
    run(parted, tmp_path / "parted", 4).train()
    for name, tensor in bits(whole).items():
        torch.testing.assert_close(bits(parted)[name], tensor, rtol=1e-3, atol=1e-4)


class Evaluated(TrainerCallback):
    """The logits at the end of training, before anything else happens."""

    def __init__(self) -> None:
        self.logits = torch.empty(0)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        with torch.no_grad():
            self.logits = model.eval()(torch.arange(6)[None]).logits


def test_the_last_update_is_evaluated_and_saved(tmp_path):
    model, seen = fresh(), Evaluated()
    run(model, tmp_path, callbacks=[seen]).train()
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(llama().float(), tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(torch.arange(6)[None]).logits, seen.logits, rtol=0, atol=0)
    for one in entries_of(model).values():
        inside = one.tensor.detach().flatten()[one.entries.indices]
        torch.testing.assert_close(inside, one.entries.values.detach(), rtol=0, atol=0)


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    whole = fresh()
    run(whole, tmp_path / "whole").train()
    cut = run(fresh(), tmp_path / "cut")
    cut.args.max_steps, cut.args.save_strategy, cut.args.save_steps = 2, "steps", 2
    cut.train()
    resumed = fresh()
    run(resumed, tmp_path / "cut").train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    for name, one in entries_of(whole).items():
        other = entries_of(resumed)[name]
        torch.testing.assert_close(other.entries.indices, one.entries.indices, rtol=0, atol=0)
        torch.testing.assert_close(other.tensor, one.tensor, rtol=0, atol=0)


def test_the_best_checkpoint_comes_back(tmp_path):
    options = {
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
    }
    model = fresh()
    trainer = run(model, tmp_path, **options)
    trainer.args.learning_rate = 10.0  # so the last step is not the best
    trainer.train()
    best = PeftModel.from_pretrained(llama().float(), trainer.state.best_model_checkpoint)
    assert not trainer.state.best_model_checkpoint.endswith(f"checkpoint-{STEPS}")
    torch.testing.assert_close(bits(model), bits(best), rtol=0, atol=0)


def test_gradient_checkpointing_and_mixed_precision_under_the_trainer(tmp_path):
    plain, saving = fresh(), fresh()
    run(plain, tmp_path / "plain").train()
    run(saving, tmp_path / "saving", gradient_checkpointing=True).train()
    torch.testing.assert_close(bits(saving), bits(plain), rtol=1e-5, atol=1e-6)
    mixed = fresh("random")
    before = bits_of_base(mixed)
    run(mixed, tmp_path / "mixed", bf16=True).train()
    for name, one in entries_of(mixed).items():
        assert (one.tensor != before[name]).sum() == len(one.entries.indices)
