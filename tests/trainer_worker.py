"""One optimizer step under every trainer, measured: by what is a penalty's gradient multiplied on its way?

The optimizer is SGD with learning rate 1, so a step moves the parameters by exactly the gradient that reached it.
The movement with a penalty, minus the movement without one, is held against `torch.autograd.grad(penalty())`.

    python trainer_worker.py OUT.json
    torchrun --nproc_per_node 2 trainer_worker.py OUT.json
"""

import itertools
import json
import os
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

import holdfast

VOCABULARY, LENGTH, TARGETS = 48, 10, ["q_proj", "down_proj"]
TRAINERS = ("Trainer", "SFTTrainer")
TIGHT = 1e-3  # max_grad_norm far below every gradient here, so that clipping acts
torch.set_num_threads(1)  # tensors this small are slower on two threads, which spin


def tokenizer() -> PreTrainedTokenizerFast:
    """Whole words w3 ... w47 and three special tokens."""
    words = ["<unk>", "<s>", "</s>", *(f"w{i}" for i in range(3, VOCABULARY))]
    plain = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def rows(count: int = 16, seed: int = 1) -> Dataset:
    """Random sequences; the labels of row i leave out its first i % 4 tokens, so micro-batches differ in items."""
    ids = torch.randint(3, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(seed))
    labels = [[-100] * (i % 4) + row[i % 4 :] for i, row in enumerate(ids.tolist())]
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels})


def base_model(dtype: torch.dtype = torch.float64) -> Any:
    """A random Llama of two layers."""
    torch.manual_seed(0)
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24}
    config = LlamaConfig(
        **sizes,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
    )
    return LlamaForCausalLM(config).to(dtype)


def lora_config(dropout: float = 0.0) -> LoraConfig:
    """Rank 4 on two layers of each block."""
    return LoraConfig(r=4, target_modules=TARGETS, lora_dropout=dropout, task_type="CAUSAL_LM")


def lora_model(dtype: torch.dtype = torch.float64, dropout: float = 0.0) -> Any:
    """A LoRA model that has left its start: where B = 0 every penalty's gradient is zero."""
    model = get_peft_model(base_model(dtype), lora_config(dropout))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
            parameter.data = parameter.data.to(dtype)
    return model


def batches() -> list[dict[str, torch.Tensor]]:
    """Source data."""
    return [{"input_ids": torch.tensor(rows(8, seed=2)["input_ids"])}]


@cache
def anchor(dtype: torch.dtype) -> holdfast.Anchor:
    """Kronecker factors of the model of that precision."""
    return holdfast.Anchor.estimate(lora_model(dtype), batches(), targets=TARGETS, progress=False)


def make_trainer(kind: str, model: Any, folder: str, **settings: Any) -> Any:
    """A `Trainer` or `SFTTrainer` over the rows, silent, on the CPU."""
    names = ("callbacks", "optimizers", "eval_dataset", "peft_config")
    more = {name: settings.pop(name) for name in names if name in settings}
    given: dict[str, Any] = {
        "output_dir": folder,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "per_device_train_batch_size": 2,
        "max_steps": 1,
        "max_grad_norm": 0.0,
        "bf16": False,
        **settings,
    }
    if kind == "SFTTrainer":
        args = SFTConfig(max_length=LENGTH, gradient_checkpointing=False, **given)
        trainer = SFTTrainer(model, args=args, train_dataset=rows(), processing_class=tokenizer(), **more)
    else:
        args = transformers.TrainingArguments(**given)
        trainer = transformers.Trainer(model, args=args, train_dataset=rows(), **more)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def flat(tensors: Any) -> torch.Tensor:
    """One float64 vector."""
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def trained(model: Any) -> list[torch.Tensor]:
    """The trainable parameters."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def across(tensor: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The mean over ranks, and the largest relative distance of a rank from it."""
    if not dist.is_initialized():
        return tensor, 0.0
    mean = tensor.clone()
    dist.all_reduce(mean)
    mean /= dist.get_world_size()
    spread = (tensor - mean).norm() / mean.norm()
    dist.all_reduce(spread, dist.ReduceOp.MAX)
    return mean, float(spread)


def make_term(name: str, model: Any, dtype: torch.dtype) -> holdfast.Penalty | holdfast.Distill:
    """What joins the loss: the Kronecker penalty, or distillation on one row per rank and step."""
    if name == "distill":
        return holdfast.Distill(model, batches(), weight=2.0, sequences=1, progress=False)
    return holdfast.Penalty(model, anchor(dtype), strength=20.0)


def step(
    kind: str, how: str | None, term: str = "penalty", *, unscaled: bool = False, clip: bool = False, **settings: Any
) -> dict[str, Any]:
    """One optimizer step: how far it moved, and the term's own gradient there (mean over ranks)."""
    dtype = torch.float32 if settings.get("bf16") else torch.float64
    model = lora_model(dtype)
    parameters = trained(model)
    with tempfile.TemporaryDirectory() as folder:
        settings["optimizers"] = (torch.optim.SGD(parameters, lr=1.0), None)
        trainer = make_trainer(kind, model, folder, **settings)
        if unscaled:  # a model whose loss is a mean per micro-batch, as BERT's for classification
            trainer.model_accepts_loss_kwargs = False
        joined = make_term(term, model, dtype)
        own = flat(torch.autograd.grad(joined(), parameters))
        if how == "callback":
            trainer.add_callback(holdfast.HoldfastCallback(joined, clip=clip))
        elif how == "attach":
            holdfast.attach(trainer, joined)
        before = flat(parameters)
        torch.manual_seed(0)  # of the order of the data, whatever was drawn before
        trainer.train()
    moved = before - flat(parameters)
    gradient, own_spread = across(own)
    return {"moved": moved, "gradient": gradient, "own_spread": own_spread, "spread": across(moved)[1]}


def relative(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """||got - wanted|| / ||wanted||."""
    return float((got - wanted).norm() / wanted.norm())


@cache
def plain_step(kind: str, *settings: tuple[str, Any]) -> torch.Tensor:
    """The movement without any term."""
    return step(kind, None, **dict(settings))["moved"]


def measure(kind: str, how: str, term: str = "penalty", **settings: Any) -> dict[str, float]:
    """The multiplier <d, g> / <g, g> and what of d is not along g, for d the movement that the term added."""
    plain = plain_step(kind, *sorted(settings.items()))
    held = step(kind, how, term, **settings)
    added, gradient = held["moved"] - plain, held["gradient"]
    return {
        "multiplier": float(added @ gradient / (gradient @ gradient)),
        "residual": relative(added, gradient),
        "task_over_penalty": float(plain.norm() / gradient.norm()),
        "spread": held["spread"],
        "own_spread": held["own_spread"],
    }


def clipped(vector: torch.Tensor) -> torch.Tensor:
    """The vector shortened to the norm TIGHT."""
    return vector * (TIGHT / vector.norm()).clamp(max=1.0)


def measure_clipping(kind: str) -> dict[str, float]:
    """Where each way stands to clipping: relative errors against the movement that it promises."""
    task = plain_step(kind)
    alone = step(kind, "callback", max_grad_norm=TIGHT)
    jointly = step(kind, "callback", clip=True, max_grad_norm=TIGHT)
    inside = step(kind, "attach", max_grad_norm=TIGHT)
    gradient = alone["gradient"]
    return {
        "callback": relative(alone["moved"], clipped(task) + gradient),
        "callback clip=True": relative(jointly["moved"], clipped(clipped(task) + gradient)),
        "attach": relative(inside["moved"], clipped(task + gradient)),
    }


def table() -> dict[str, dict[str, Any]]:
    """Every case: name -> figures."""
    found: dict[str, dict[str, Any]] = {}
    for kind, how, accumulation in itertools.product(TRAINERS, ("callback", "attach"), (1, 4)):
        found[f"{kind} {how} {accumulation}"] = measure(kind, how, gradient_accumulation_steps=accumulation)
    for kind, how in itertools.product(TRAINERS, ("callback", "attach")):
        found[f"{kind} {how} 4 bf16"] = measure(kind, how, gradient_accumulation_steps=4, bf16=True)
        found[f"{kind} {how} 4 distill"] = measure(kind, how, gradient_accumulation_steps=4, term="distill")
    found["Trainer callback 4 distill bf16"] = measure(
        "Trainer", "callback", gradient_accumulation_steps=4, term="distill", bf16=True
    )
    found["Trainer attach 4 unscaled"] = measure("Trainer", "attach", gradient_accumulation_steps=4, unscaled=True)
    found["clipping"] = measure_clipping("Trainer")
    return found


def main() -> None:
    """Write the table, from the first rank."""
    warnings.simplefilter("ignore")
    disable_progress_bars()
    measured = table()
    if int(os.environ.get("RANK", "0")) == 0:
        Path(sys.argv[1]).write_text(json.dumps(measured))
    if dist.is_initialized():
        dist.barrier()
        os._exit(0)  # gloo's threads can abort an interpreter that tears itself down while another rank still works


if __name__ == "__main__":
    main()
