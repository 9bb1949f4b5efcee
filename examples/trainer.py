"""`transformers.Trainer` and a LoRA of PEFT, held by one callback.

    python examples/trainer.py

The small model that ships with Holdfast writes documentation prose; here it learns Python code. The anchor is measured
once, on a little prose. While LoRA learns the code, the callback keeps what the prose needs.
"""

import tempfile

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers import DataCollatorForLanguageModeling as Collator

import holdfast
from holdfast.models import shipped
from holdfast.tasks import code, prose

torch.set_num_threads(1)
tokenizer = AutoTokenizer.from_pretrained(shipped())


def rows(documents: list[str]) -> Dataset:
    """Blocks of 128 tokens."""
    ids = tokenizer("\n\n".join(documents), verbose=False)["input_ids"]
    return Dataset.from_dict({"input_ids": [ids[i : i + 128] for i in range(0, len(ids) - 127, 128)]})


old, new, new_test = rows(prose.documents("test")), rows(code.documents("validation")), rows(code.documents("test"))
source, old_test, new_test = old.select(range(100)), old.select(range(100, 164)), new_test.select(range(64))


def fine_tune(strength: float) -> tuple[float, float]:
    """What a run gains on code and loses on prose, in nats per token; strength 0 is plain LoRA."""
    set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(shipped())
    anchor = holdfast.Anchor.estimate(model, source)
    model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    penalty = holdfast.Penalty(model, anchor, strength=strength)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model,
            TrainingArguments(folder, max_steps=50, learning_rate=5e-3, logging_steps=10, save_strategy="no"),
            data_collator=Collator(tokenizer, mlm=False),
            train_dataset=new,
            callbacks=[holdfast.HoldfastCallback(penalty)],
        )
        old_before, new_before = (trainer.evaluate(test)["eval_loss"] for test in (old_test, new_test))
        trainer.train()
        old_after, new_after = (trainer.evaluate(test)["eval_loss"] for test in (old_test, new_test))
    return new_before - new_after, old_after - old_before


plain_gain, plain_loss = fine_tune(strength=0.0)
held_gain, held_loss = fine_tune(strength=5.0)
print(f"plain: gained {plain_gain:.3f} nats per token on code, lost {plain_loss:.3f} on prose")
print(f"held:  gained {held_gain:.3f} nats per token on code, lost {held_loss:.3f} on prose")
assert held_loss < plain_loss / 2, "the penalty should more than halve the forgetting"
assert held_gain > 0.9 * plain_gain, "and keep nine tenths of the gain"
