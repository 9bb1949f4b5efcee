"""Pre-train the model that ships inside the package: a small Llama on documentation prose.

    python scripts/pretrain.py --out src/holdfast/models/prose-1m

Writes a folder that `AutoModelForCausalLM.from_pretrained` and `AutoTokenizer.from_pretrained` load, and
`pretraining.json` with tokens and losses for the model card. About ten minutes on one CPU core.
"""

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.utils.data import TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, Trainer, TrainingArguments

from holdfast.tasks import prose

VOCABULARY = 2048
BLOCK = 256  # tokens


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of our own; every document starts with <s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=512
    )


def pack(tokenizer: PreTrainedTokenizerFast, documents: list[str], passes: int, seed: int) -> TensorDataset:
    """Blocks of BLOCK tokens over `passes` passes, the documents in a new order each pass."""
    encoded = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    order = random.Random(seed)
    stream: list[int] = []
    for _ in range(passes):
        order.shuffle(encoded)
        stream.extend(token for ids in encoded for token in ids)
    blocks = len(stream) // BLOCK
    return TensorDataset(torch.tensor(stream[: blocks * BLOCK]).view(blocks, BLOCK))


def collate(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    ids = torch.stack([row[0] for row in rows])  # (batch, BLOCK)
    return {"input_ids": ids, "labels": ids}


def fresh_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama of 1.1 M parameters with random weights."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlamaForCausalLM(config)


def arguments(out: Path, steps: int, seed: int) -> TrainingArguments:
    """One pass over the packed data; the checkpoint with the lowest validation loss is kept."""
    return TrainingArguments(
        output_dir=str(out) + ".checkpoints",
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        num_train_epochs=1,
        learning_rate=3e-3,
        lr_scheduler_type="cosine",
        warmup_steps=100,
        weight_decay=0.1,
        adam_beta2=0.95,
        logging_steps=50,
        eval_strategy="steps",
        eval_steps=steps // 12,
        save_strategy="steps",
        save_steps=steps // 12,
        save_total_limit=2,
        load_best_model_at_end=True,
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        seed=seed,
    )


def main() -> None:
    """Train the tokenizer, then the model, then write both down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.manual_seed(options.seed)

    train, validation, test = (prose.documents(split) for split in ("train", "validation", "test"))
    tokenizer = train_tokenizer(train)
    model = fresh_model(tokenizer)
    data = pack(tokenizer, train, options.passes, options.seed)
    trainer = Trainer(
        model=model,
        args=arguments(options.out, len(data) // 16, options.seed),
        train_dataset=data,
        eval_dataset=pack(tokenizer, validation, 1, 0),
        data_collator=collate,
    )
    trainer.train()
    losses = {
        "validation": trainer.evaluate()["eval_loss"],
        "test": trainer.evaluate(pack(tokenizer, test, 1, 0))["eval_loss"],
    }
    model.save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    facts = {
        "parameters": model.num_parameters(),
        "unique_training_tokens": len(data) * BLOCK // options.passes,
        "passes": options.passes,
        "tokens_seen": len(data) * BLOCK,
        "loss_nats_per_token": losses,
        "best_checkpoint_step": trainer.state.best_global_step,
        "seed": options.seed,
    }
    (options.out / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
