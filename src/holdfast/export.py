"""`holdfast export`: a finished adapter in a form that needs no Holdfast."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.adapter_folder import CONFIG, base_of
from holdfast.adapters.weight_norm import check_mergeable
from holdfast.combine import check_sift
from holdfast.errors import HoldfastError, look_up
from holdfast.files import output_folder, whole_folder, write_text
from holdfast.front_matter import front_matter
from holdfast.language_model import load_adapter, load_model, load_tokenizer
from holdfast.sift.shira import write_shira
from holdfast.tuned import check_destination

SIGNATURE = "exported with Holdfast"


def export(adapter: Path, to: str, out: Path, model: str | None = None, dtype: str = "auto") -> dict[str, Any]:
    """Write an adapter as another tool reads it.

    Args:
        adapter: its folder.
        to: "shira" (a PEFT adapter, of SIFT adapters) or "merged" (a whole model, of any adapter that merges).
        out: the folder to write.
        model: the base model; None is the one that the adapter names.
        dtype: to load it in: the one that the adapter was trained in.

    Returns:
        What was done: `adapter`, `model`, `to`, and figures of the form.

    Raises:
        HoldfastError: an unknown form, an adapter that the form can't hold, another base model, an `out` that holds
            something else.
    """
    write = look_up("form", to, FORMS)
    named = base_of(adapter)
    if write is _shira:
        check_sift(
            adapter,
            "only those of `holdfast tune --method sift` can be SHiRA adapters",
            "--to merged, or use it as it is: stock PEFT loads its own methods' adapters",
        )
    base = model or named
    if base is None:
        raise HoldfastError(f"{adapter} names no base model", remedy="name it: --model MODEL")
    if out.resolve() == adapter.resolve():
        raise HoldfastError(f"--out {out} would write over the adapter", remedy="choose another --out")
    check_destination(out, SIGNATURE)
    with output_folder(out.parent):
        loaded = load_adapter(load_model(base, dtype), str(adapter))
        with whole_folder(out) as folder:
            figures = write(loaded, base, folder)
            kind = "peft" if (folder / CONFIG).is_file() else "transformers"
            write_text(folder / "README.md", _card(base, kind, f"`{adapter}` on `{base}`, {SIGNATURE} as {to}."))
    return {"schema": 1, "adapter": str(adapter), "model": base, "to": to, **figures}


def _shira(loaded: Any, base: str, folder: Path) -> dict[str, Any]:
    loaded.active_peft_config.base_model_name_or_path = base
    written = write_shira(loaded, folder)
    return {"r": written.r, "entries": written.entries, "stored": written.stored}


def _merged(loaded: Any, base: str, folder: Path) -> dict[str, Any]:
    if not hasattr(loaded, "merge_and_unload"):
        raise _unmergeable(loaded)
    check_mergeable(loaded)
    try:
        whole = loaded.merge_and_unload()
    except (AttributeError, NotImplementedError) as error:  # prompts and prefixes, packed weights
        raise _unmergeable(loaded) from error
    whole.save_pretrained(str(folder))
    try:
        load_tokenizer(base).save_pretrained(str(folder))
    except HoldfastError as error:
        warnings.warn(f"the model is written without a tokenizer: {error.got}", stacklevel=3)
    return {"parameters": sum(parameter.numel() for parameter in whole.parameters())}


def _unmergeable(loaded: Any) -> HoldfastError:
    return HoldfastError(
        f"an adapter of the kind {loaded.active_peft_config.peft_type.value} does not merge into these weights",
        causes=["it adds to the inputs instead of the weights", "the base is quantised"],
        remedy="keep it as an adapter, or load the base unquantised (--dtype)",
    )


def _card(base: str, library: str, text: str) -> str:
    head = front_matter({"base_model": base, "library_name": library})
    return f"{head}\n\n# {Path(base).name}, adapted\n\n{text}\n"


FORMS: dict[str, Callable[[Any, str, Path], dict[str, Any]]] = {"shira": _shira, "merged": _merged}
