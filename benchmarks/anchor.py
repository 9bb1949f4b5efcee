"""What an anchor costs: estimation over one plain forward and backward, beside other curvature libraries.

    python benchmarks/anchor.py --json benchmarks/results/anchor.json

A Llama with random weights (hidden 256, 4 layers, intermediate 1024, 4 heads, vocabulary 4096, float32, 28 target
layers), 64 sequences of 128 random tokens, batches of 8. `ratio` is the CPU time of the whole estimate over that of
a forward and backward pass with all weights trainable on the same batches. `peak_mb` is the memory that a fresh
process needs on top of model and libraries, for 16 sequences.

Cases: every structure with its defaults, `kronecker-bf16` (rows rounded to bfloat16, products and sums in float32: a
CPU saves nothing by it), `kronecker-quarter` (a quarter of the positions enter the sums), and `adapter-...`, on the
parameters of a LoRA of rank 8. `labels` is
"sampled" from the model or the "data"'s own; `per` is what is squared: each "token"'s gradient or each "sequence"'s.
Libraries that are installed run in turn with ours; see `anchor_peers.py`.

`difference`, where labels are the data's: C D of a random D in each layer, scaled to norm 1, against ours, the worst
layer; libraries scale C differently, so only directions compare. Their Kronecker factors count the inputs of the last
position, which reaches no loss, and ours don't: that is the difference there. Eigenvectors turn with it, so eigen is
not compared.
"""

import argparse
import copy
import gc
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import anchor_peers
import torch
from anchor_peers import Key, Prepared
from measure import Case, arguments, interleaved, milliseconds, publish, ratio
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from holdfast import catalogue
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.machine import peak_memory_mb, reset_peak_memory

PLAIN: Key = ("plain", "", "", "")
AGAINST = "one forward and backward with all weights trainable"
COLUMNS = ("tool", "case", "labels", "per")
BOTH = ("kronecker", "diagonal", "eigen")  # with either kind of labels, as other libraries have them
SEQUENCES = ("diagonal", "eigen")  # per sequence as well
ON_ADAPTER = ("diagonal", "kronecker", "tridiagonal")
IN_MEMORY = 16  # sequences of the runs whose memory is measured


def main() -> None:
    """Measure, and write or print."""
    chosen = parsed()
    model, ids = workload(chosen.sequences)
    if chosen.peak:
        print(json.dumps(peak(tuple(chosen.peak), model, ids[:IN_MEMORY])))
        return
    prepared, skipped = ({}, []) if chosen.no_peers else anchor_peers.prepare(model, ids, chosen.only)
    mine, refused = checked({k: run for k, run in ours(model, ids).items() if not chosen.only or k[1] in chosen.only})
    cases = {PLAIN: plain(model, ids), **mine, **{key: peer.run for key, peer in prepared.items()}}
    seconds = interleaved(cases, chosen.repeats)
    peaks = {} if chosen.no_peak else {key: spawned(key) for key in cases}
    differing = differences(mine, prepared)
    reference = seconds.pop(PLAIN)
    rows = [
        {
            **dict(zip(COLUMNS, key, strict=True)),
            "ms": milliseconds(taken),
            "tokens_per_s": round(ids.numel() / milliseconds(taken) * 1e3),
            "ratio": ratio(taken, reference),
            "against": AGAINST,
            **({"kind": prepared[key].kind} if key in prepared else {}),
            **({"peak_mb": peaks[key]} if peaks.get(key) is not None else {}),
            **({"difference": differing[key]} if key in differing else {}),
        }
        for key, taken in seconds.items()
    ]
    facts: dict[str, Any] = {"repeats": chosen.repeats, "sequences": chosen.sequences}
    facts |= {"time": "CPU, one thread, median", "plain_ms": milliseconds(reference)}
    facts |= {"plain_peak_mb": peaks[PLAIN]} if peaks else {}
    publish(rows, chosen.json, **facts, skipped=[*refused, *skipped])


def parsed() -> argparse.Namespace:
    """What was asked for."""
    parser = arguments(__doc__.splitlines()[0], repeats=5)
    parser.add_argument("--no-peers", action="store_true", help="only Holdfast")
    parser.add_argument("--no-peak", action="store_true", help="no memory")
    parser.add_argument("--sequences", type=int, default=64)
    parser.add_argument("--only", nargs="+", metavar="CASE", help="for a quick look")
    parser.add_argument("--peak", nargs=4, metavar=("TOOL", "CASE", "LABELS", "PER"), help=argparse.SUPPRESS)
    return parser.parse_args()


def workload(sequences: int) -> tuple[LlamaForCausalLM, Tensor]:
    """The model and its tokens, (sequences, 128)."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval(), torch.randint(0, 4096, (sequences, 128))


def plain(model: LlamaForCausalLM, ids: Tensor) -> Case:
    """The reference: gradients of all weights, batch by batch."""

    def run() -> None:
        for batch in ids.split(8):
            model(input_ids=batch, labels=batch).loss.backward()
            model.zero_grad()

    return run


def ours(model: LlamaForCausalLM, ids: Tensor) -> dict[Key, Case]:
    """Everything `Anchor.estimate` does, the weights' fingerprints included."""
    measured = [kind for kind in catalogue.names("curvature") if catalogue.curvature(kind).statistics()]
    asked: dict[Key, dict[str, Any]] = {}
    for kind in measured:
        usual = catalogue.curvature(kind).per
        for labels in ("sampled", "data") if kind in BOTH else ("sampled",):
            asked["holdfast", kind, labels, usual] = {"curvature": kind}
            if kind in SEQUENCES:
                asked["holdfast", kind, labels, "sequence"] = {"curvature": kind, "per": "sequence"}
    asked["holdfast", "kronecker-bf16", "sampled", "token"] = {"dtype": torch.bfloat16}
    asked["holdfast", "kronecker-quarter", "sampled", "token"] = {"fraction": 0.25}
    for kind in ON_ADAPTER:
        asked["holdfast", f"adapter-{kind}", "sampled", "token"] = {"curvature": kind, "space": "adapter"}
    batches = [{"input_ids": batch} for batch in ids.split(8)]
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(r=8, target_modules=list(anchor_peers.targets(model))))
    return {
        key: partial(
            Anchor.estimate,
            adapted if "space" in options else model,
            batches,
            fisher=key[2],
            progress=False,
            **options,
        )
        for key, options in asked.items()
    }


def checked(cases: dict[Key, Case]) -> tuple[dict[Key, Case], list[dict[str, str]]]:
    """Those that run, and what we refuse, with the reason."""
    running, refused = {}, []
    for key, case in cases.items():
        try:
            case()
        except HoldfastError as error:
            refused.append({**dict(zip(COLUMNS, key, strict=True)), "reason": str(error).splitlines()[0]})
        else:
            running[key] = case
    return running, refused


def peak(key: Key, model: LlamaForCausalLM, ids: Tensor) -> float:
    """The high-water mark of this process's memory over one run, above what it held before, in 10^6 bytes."""
    everything = {PLAIN: plain(model, ids), **ours(model, ids)}
    case = everything[key] if key in everything else anchor_peers.make(key, model, ids).run
    gc.collect()
    reset_peak_memory()
    before = peak_memory_mb()
    case()
    return round(peak_memory_mb() - before, 2)


def spawned(key: Key) -> float | None:
    """The peak of one case, in a process of its own; None, and a word about it, where that process fails."""
    command = [sys.executable, str(Path(__file__).resolve()), "--peak", *key]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(f"no peak of {' '.join(key)}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.splitlines()[-1])


def differences(mine: dict[Key, Case], prepared: dict[Key, Prepared]) -> dict[Key, float]:
    """How far each library's C D is from ours, of the same structure and labels: the worst of all layers."""
    found: dict[Key, float] = {}
    for key, peer in prepared.items():
        same = ("holdfast", *key[1:])
        if key[2] != "data" or peer.apply is None or same not in mine:
            continue
        anchor: Any = mine[same]()
        worst = 0.0
        for name, curvature in anchor.curvatures.items():
            delta = torch.randn(curvature.shape, generator=torch.Generator().manual_seed(0))
            ours, theirs = (found / found.norm() for found in (curvature.apply(delta), peer.apply(name, delta)))
            worst = max(worst, float((ours - theirs).norm()))
        found[key] = worst
    return found


if __name__ == "__main__":
    main()
