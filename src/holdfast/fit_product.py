"""The folders of `holdfast fit`: the adapter or model that came, and the fitted one in its place."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from holdfast.adapter_folder import CONFIG, base_of
from holdfast.anchor import Anchor
from holdfast.errors import HoldfastError
from holdfast.files import require_folder, whole_folder, write_json
from holdfast.fit_card import SIGNATURE, write_card
from holdfast.fitting.refusals import unknown_price
from holdfast.language_model import is_model, load_adapter, load_model
from holdfast.targets import base_layers
from holdfast.tuned import PRODUCTS, drop_other, signed

CARD = "README.md"
RESULTS = "results.json"
PRICED = ("lora_", "sift_")  # in the names of tensors that make up a shift of layers' weights
WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
LEFT_BEHIND = ("optimizer.*", "scheduler.*", "rng_state*", "scaler.*", "trainer_state.json", "training_args.bin")


@dataclass(frozen=True)
class Came:
    """What is to be fitted.

    Attributes:
        folder: where it lies.
        kind: "adapter" or "model".
        base: the base model that it names; None where it names none.
        others: further adapters in folders inside.
    """

    folder: Path
    kind: str
    base: str | None
    others: tuple[str, ...] = ()

    def load(self, base: Any, anchor: Anchor, dtype: str) -> tuple[Any, dict[str, Tensor] | None]:
        """The finished model, and the base's layers where it is a wholly tuned one.

        Raises:
            HoldfastError: an adapter of another model, tensors that are no LoRA, weights that moved at no price.
        """
        if self.kind == "adapter":
            _check_tensors(self.folder, base)
            model = load_adapter(base, str(self.folder))
            anchor.check(model)  # PEFT loads what an adapter's file holds of the base model too
            return model, None
        tuned = load_model(str(self.folder), dtype)
        _check_beside(base, tuned, anchor)
        return tuned, {name: module.weight.detach() for name, module in base_layers(base).items()}

    def notes(self, base: str) -> list[str]:
        """What a reader should know of how it was taken."""
        found = []
        if self.others:
            found.append(f"{self.folder} holds further adapters, which were left alone: {', '.join(self.others)}.")
        if self.base is not None and self.base != base:
            found.append(f"The adapter names {self.base} as its base model, and was fitted on {base}.")
        return found


def read(folder: Path) -> Came:
    """What lies in a folder.

    Raises:
        HoldfastError: neither an adapter nor a model, or several adapters and none that is meant.
    """
    if is_model(folder):
        return Came(folder, "model", None)
    inside = tuple(sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}")))
    if inside and not (folder / CONFIG).is_file():
        raise HoldfastError(
            f"{folder} holds several adapters and is none itself: {', '.join(inside)}",
            remedy=f"name one of them: --adapter {folder / inside[0]}",
        )
    return Came(folder, "adapter", base_of(folder), inside)


def check_destination(out: Path, adapter: Path) -> None:
    """Raise HoldfastError where writing would replace the adapter that came, or anything but an earlier fit."""
    require_folder(out)
    came, there = adapter.resolve(), out.resolve()
    if there == came or came in there.parents or came in [there / name for name in PRODUCTS]:
        raise HoldfastError(
            f"--out {out} would write over the adapter that came, {adapter}", remedy="choose another --out"
        )
    inside = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.is_dir() else []
    strange = [name for name in inside if name not in (*PRODUCTS, RESULTS)]
    foreign = [name for name in PRODUCTS if name in inside and not signed(out / name, SIGNATURE)]
    if RESULTS in inside and not (set(inside) & set(PRODUCTS)):
        strange.append(RESULTS)
    if strange or foreign:
        raise HoldfastError(
            f"{out} is where the result goes, but it holds other things: {', '.join([*strange, *foreign][:3])}",
            wanted="a new folder, an empty one, or an earlier fit to replace",
            remedy="choose another --out",
        )


def save(model: Any | None, came: Came, results: dict[str, Any], out: Path) -> None:
    """Write the fitted adapter or model, and results.json, each whole or absent.

    Files beside the weights (configuration, tokenizer) are copied as they came; without a model the weights too.
    """
    final = out / came.kind
    with whole_folder(final) as folder:
        for path in _files(came.folder, with_weights=model is None):
            shutil.copyfile(path, folder / path.name)
        if model is not None:
            _save_weights(model, came, folder)
        write_card(folder / CARD, results, came.folder / CARD)
    drop_other(final)
    write_json(out / RESULTS, results)


def _save_weights(model: Any, came: Came, folder: Path) -> None:
    if came.kind == "model":
        model.save_pretrained(str(folder))
        return
    model.save_pretrained(str(folder), save_embedding_layers=False)
    shutil.copyfile(came.folder / CONFIG, folder / CONFIG)  # to the letter: PEFT writes its own version's keys


def _files(folder: Path, *, with_weights: bool) -> list[Path]:
    """The files of an adapter or a model, without what an unfinished training left beside them."""
    left = (*LEFT_BEHIND, CARD, *(() if with_weights else WEIGHTS))
    return [path for path in sorted(folder.iterdir()) if path.is_file() and not any(map(path.match, left))]


def _check_tensors(folder: Path, base: Any) -> None:
    """Raise HoldfastError for an adapter file that holds other weights than LoRA's, SIFT's and the base model's own.

    PEFT saves the base's embeddings beside an adapter on them.
    """
    from peft.utils import load_peft_weights

    try:
        tensors = load_peft_weights(str(folder), device="cpu")
    except Exception as error:  # safetensors, torch and the hub each raise their own
        raise HoldfastError(
            f"the weights of the adapter in {folder} can't be read: {error}",
            causes=["adapter_model.safetensors is missing or cut off"],
            remedy="copy the adapter again",
        ) from error
    known = base.state_dict()
    others = {name: tensor for name, tensor in tensors.items() if not any(prefix in name for prefix in PRICED)}
    bare = {name: name.removeprefix("base_model.model.").replace(".base_layer.", ".") for name in others}
    strange = [n for n, t in others.items() if bare[n] not in known or not _same(t, known[bare[n]])]
    if strange:
        raise HoldfastError(
            f"the adapter in {folder} holds {len(strange)} tensors that are neither LoRA's nor SIFT's and that "
            f"nothing prices: {', '.join(strange[:3])}",
            causes=["modules_to_save, trained biases or resized embeddings", "another method than LoRA or SIFT"],
            remedy="fit a plain LoRA or SIFT; what PEFT can merge (IA3, DoRA) can be fitted as a whole model; "
            "prefixes, bottlenecks and ConvAdapters move no weight: train again under --budget, which distils",
        )


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.to(other), other)


def _check_beside(base: Any, tuned: Any, anchor: Anchor) -> None:
    """Raise HoldfastError where the tuned model is of another shape, or moved what the anchor has no price for."""
    ours, theirs = base.state_dict(), tuned.state_dict()
    for name, tensor in ours.items():
        if name not in theirs or theirs[name].shape != tensor.shape:
            raise HoldfastError(
                f"the tuned model is not one of this base model: {name} is {tuple(tensor.shape)} in the base and "
                f"{tuple(theirs[name].shape) if name in theirs else 'missing'} in the tuned one",
                remedy="name the model that it was tuned from: --model",
            )
    layers = base_layers(base)
    weights = {id(layers[name].weight) for name in anchor.curvatures}
    priced = {name for name, p in base.named_parameters(remove_duplicate=False) if id(p) in weights}
    moved = [name for name, tensor in ours.items() if not _same(theirs[name], tensor)]
    if unpriced := [name for name in moved if name not in priced]:
        raise unknown_price(unpriced)
