"""What a tuning run leaves in its folder."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from holdfast.card import SIGNATURE, write_card
from holdfast.checkpoints import Run
from holdfast.errors import HoldfastError
from holdfast.files import require_folder, whole_folder, write_json, write_text
from holdfast.report import page
from holdfast.watching import LIVE_LOG, log_line, moments

PRODUCTS = ("adapter", "model")  # folders: what a method with and without an adapter leaves


def check_destination(folder: Path, signature: str = SIGNATURE) -> None:
    """Refuse to replace a folder that is not an earlier run's: the base model itself, for instance.

    Args:
        folder: where the result goes.
        signature: what the model card of an earlier result says.
    """
    require_folder(folder)
    inside = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if inside and not signed(folder, signature):
        raise HoldfastError(
            f"{folder} is where the result goes, but it holds other things: {', '.join(inside[:3])}",
            wanted="a new folder, an empty one, or an earlier result to replace",
            remedy="choose another --out",
        )


def save(model: Any, tokenizer: Any, results: dict[str, Any], run: Run, out: Path) -> None:
    """Adapter or fully tuned model, results and log, each whole or absent; an earlier run's product goes."""
    adapter = hasattr(model, "peft_config")
    final = out / ("adapter" if adapter else "model")
    with whole_folder(final) as folder:
        model.save_pretrained(str(folder))
        tokenizer.save_pretrained(str(folder))
        write_card(folder / "README.md", results, adapter=adapter)
    drop_other(final)
    write_json(out / "results.json", results)
    write_text(out / "recipe.resolved.yaml", run.recipe)
    write_text(out / "log.jsonl", "".join(map(log_line, moments(results["rows"][-1]))))
    (out / LIVE_LOG).unlink(missing_ok=True)
    (out / "report.html").unlink(missing_ok=True)  # of an earlier run


def write_report(results: dict[str, Any], out: Path, say: Callable[[str], None]) -> None:
    """report.html, or a line on what is not installed for it."""
    try:
        page.write(results, out / "report.html")
    except HoldfastError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        say(f"No report.html: {error}")  # the results are whole without it


def signed(folder: Path, signature: str) -> bool:
    """Whether the model card in a folder says that Holdfast wrote it."""
    card = folder / "README.md"
    return card.is_file() and signature in card.read_text(encoding="utf-8", errors="replace")


def drop_other(final: Path) -> None:
    """Remove an earlier product of the other kind: the figures beside it would not be its own."""
    for name in PRODUCTS:
        if name != final.name and (final.parent / name).is_dir():
            shutil.rmtree(final.parent / name)
