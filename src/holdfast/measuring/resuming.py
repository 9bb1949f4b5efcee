"""Checkpoints of a measurement: the sums so far, so that one that was stopped goes on where it was."""

import hashlib
import json
import shutil
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from holdfast.errors import HoldfastError
from holdfast.files import require_folder, require_writable, whole_folder

FORMAT = 1
SUMS, PROGRESS = "sums.safetensors", "progress.json"
EVERY = 60.0  # seconds between two checkpoints
SHARE = 20.0  # and at least so many times as long as writing one takes
SAMPLED = 64  # entries of each tensor of the model


class Checkpoint:
    """A folder with a sub-folder for each pass over the data, written in one piece each.

    Args:
        folder: made if need be.
        settings: everything that decides what the sums become; a checkpoint of other settings is refused.
        writes: whether this process does so; of several that measure together one does.

    Raises:
        HoldfastError: a folder that can't be written to.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], *, writes: bool = True) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))
        if writes:
            require_folder(folder)
            require_writable(folder)
        self._next = time.monotonic() + EVERY

    @property
    def due(self) -> bool:
        """Whether it is time to write."""
        return time.monotonic() >= self._next

    def write(self, number: int, progress: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Replace what is stored of a pass."""
        started = time.monotonic()
        with whole_folder(self._pass(number)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary / SUMS)
            stored = {"format": FORMAT, "settings": self.settings, "progress": progress}
            (temporary / PROGRESS).write_text(json.dumps(stored, indent=2), encoding="utf-8")
        self._next = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - started))

    def read(self, number: int) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Progress and tensors of a pass; None where nothing is stored.

        Raises:
            HoldfastError: a broken checkpoint, or one of other settings, naming the first that differs.
        """
        folder = self._pass(number)
        if not folder.exists():
            return None
        try:
            stored = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
            tensors = load_file(folder / SUMS)
        except (OSError, ValueError, SafetensorError) as error:
            raise self._unfit(f"it does not load ({error})") from error
        if stored["format"] != FORMAT:
            raise self._unfit("another version of holdfast wrote it")
        for name, value in self.settings.items():
            if stored["settings"].get(name) != value:
                raise self._unfit(f"{name} was {_short(stored['settings'].get(name))} and is {_short(value)} now")
        return stored["progress"], tensors

    def remove(self) -> None:
        """Take away what was stored, and the folder where nothing else is in it."""
        for folder in self.folder.glob("pass-*"):
            shutil.rmtree(folder)
        with suppress(OSError):  # not empty
            self.folder.rmdir()

    def other_data(self) -> HoldfastError:
        """The error for a source whose first batches are not those that were summed."""
        return self._unfit("the source does not begin with the batches that it was measured on")

    def _pass(self, number: int) -> Path:
        return self.folder / f"pass-{number}"

    def _unfit(self, why: str) -> HoldfastError:
        return HoldfastError(
            f"the checkpoint in {self.folder} can't be resumed: {why}",
            wanted="the same model, data, order of batches and settings as when it was written",
            remedy="go back to those, name another folder, or delete this one to begin anew",
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def identity(model: nn.Module) -> str:
    """A hash of names, shapes, sums and sampled entries of all parameters and buffers: cheap, for this machine."""
    known = hashlib.sha256()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            known.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            if tensor.is_meta or not tensor.numel():
                continue
            flat = tensor.detach().flatten()
            # Whole numbers: float32 would round the last place beyond the end of 2^24 entries.
            places = torch.arange(SAMPLED, device=flat.device) * (flat.numel() - 1) // (SAMPLED - 1)
            known.update(repr([*flat[places].tolist(), flat.sum(dtype=torch.float64).item()]).encode())
    return known.hexdigest()


class Deferred:
    """Holds back SIGINT and SIGTERM inside the block, so that no batch is summed by half; a second one acts at once.

    What was held back is raised by `release`, after the block. Elsewhere than in the main thread it does nothing.
    """

    def __init__(self, active: bool = True) -> None:
        self.caught: int | None = None
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not None:  # None: not Python's to restore
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            self._restore()
            signal.raise_signal(number)
        self.caught = number

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def release(self) -> None:
        """Raise the signal that was held back, if there was one."""
        if self.caught is not None:
            number, self.caught = self.caught, None
            signal.raise_signal(number)
