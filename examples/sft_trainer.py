"""TRL's `SFTTrainer`, held in function space and in weight space, with no old data at all.

    python examples/sft_trainer.py

`Distill(source="self")` lets the model write some text before training. While LoRA learns, the KL to what the model
would have said (the same model with its adapter off: no second copy) joins the loss. `Penalty` holds the weights
beside it, its anchor measured on text of the same kind.
"""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed
from trl import SFTConfig, SFTTrainer

import holdfast
from holdfast.models import shipped

torch.set_num_threads(1)
SIGNS = {"add": "+", "subtract": "-", "multiply": "*", "divide": "/"}
TASK = Dataset.from_list(
    [
        {"prompt": f"{verb.capitalize()} {a} and {b}.", "completion": f" def {verb}({a}, {b}): return {a} {sign} {b}"}
        for verb, sign in SIGNS.items()
        for a in "abcdefgh"
        for b in "nopqrstuvwxyz"
    ]
).train_test_split(test_size=64, seed=0)


def fine_tune(hold: bool) -> tuple[float, float]:
    """Nats per token gained on the task, and the KL from the start on text that no run has seen."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(shipped())
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    distill = holdfast.Distill(model, source="self", weight=1.0, samples=64, length=96)
    anchor = holdfast.Anchor.estimate(model, Dataset.from_list(holdfast.sample_from(model, 64, 96, seed=1)))
    penalty = holdfast.Penalty(model, anchor, strength=1.0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            model,
            # The last two make it run on a CPU.
            args=SFTConfig(folder, max_steps=50, learning_rate=5e-3, save_strategy="no", use_cpu=True, bf16=False),
            train_dataset=TASK["train"],
            eval_dataset=TASK["test"],
            processing_class=AutoTokenizer.from_pretrained(shipped()),
            callbacks=[holdfast.HoldfastCallback(distill, penalty)] if hold else None,
        )
        before = trainer.evaluate()["eval_loss"]
        trainer.train()
        gain = before - trainer.evaluate()["eval_loss"]
    unseen = holdfast.Distill(model, source="self", weight=1.0, samples=64, length=96, sequences=64, seed=2)
    with torch.no_grad():
        return gain, float(unseen())


plain_gain, plain_divergence = fine_tune(hold=False)
held_gain, held_divergence = fine_tune(hold=True)
print(f"plain: gained {plain_gain:.3f} nats per token, KL to the start {plain_divergence:.3f}")
print(f"held:  gained {held_gain:.3f} nats per token, KL to the start {held_divergence:.3f}")
assert held_divergence < plain_divergence / 3, "holding on should cut the divergence to less than a third"
assert held_gain > 0.9 * plain_gain, "and keep nine tenths of the gain"
