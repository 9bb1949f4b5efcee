"""The names of an adapter's parameters: in a model with the adapter's own, in a file without it.

In a model "layers.0.bottleneck_blocks.mine.feed_forward.down.weight", in a file
"layers.0.bottleneck_blocks.feed_forward.down.weight", so that a file can be loaded under any name. PEFT's own removal
looks at the end of a name only, which a block with parts does not reach; files written through it hold the adapter's
name, and are read too.
"""

from collections.abc import Collection, Iterable, Mapping

from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from holdfast.errors import HoldfastError

WRAPPED = "base_model.model."  # what names in a file start with, whether or not the model is a PeftModel


def marker(blocks: str, adapter: str) -> str:
    """What an adapter's names in a model have and no others: ".bottleneck_blocks.mine."."""
    return f".{blocks}.{adapter}."


def within_block(key: str, blocks: str, adapter: str) -> str:
    """The part of a name in a model that layers with a shared block have in common; the whole without a block."""
    return key.partition(marker(blocks, adapter))[2] or key


def with_old_names(saved: Mapping[str, Tensor], wanted: Iterable[str], blocks: str, adapter: str) -> dict[str, Tensor]:
    """A file's tensors with those of names that hold an adapter's name under the model's names.

    Args:
        saved: the file's, by the model's names where those are known already.
        wanted: names in the model.
        blocks: the module that holds the adapters: "bottleneck_blocks".
        adapter: its name in the model; whatever it was called in the file.
    """
    found = dict(saved)
    inside = (key.partition(f".{blocks}.")[2] for key in saved)
    called = sorted({rest.partition(".")[0] for rest in inside if rest})
    for key in wanted:
        for name in called:
            then = key.replace(marker(blocks, adapter), marker(blocks, name), 1)
            then = BaseTuner._remove_adapter_name_from_key(then, name)
            for spelling in (then, f"{WRAPPED}{then}"):
                if key not in found and spelling in found:
                    found[key] = found.pop(spelling)
    return found


def check_name(adapter: str) -> None:
    """Check what an adapter is called.

    Raises:
        HoldfastError: a name that a module can't have.
    """
    if not adapter or "." in adapter:
        raise HoldfastError(
            f"an adapter can't be called {adapter!r}",
            wanted="a name without dots, since it becomes a part of its parameters' names",
            remedy=f"call it {adapter.replace('.', '_') or 'default'!r}",
        )


def check_complete(adapter: str, wanted: Collection[str], found: Collection[str]) -> None:
    """Check that a file has all of an adapter's parameters; those that it lacks would stay at their start.

    Raises:
        HoldfastError: it lacks some; the message names the first.
    """
    missing = [key for key in wanted if key not in found]
    if missing:
        raise HoldfastError(
            f"{len(missing)} of the {len(wanted)} parameters of the adapter {adapter!r} are not in its file, among "
            f"them {missing[0]}",
            wanted="a file with all of them; the others would stay at their start",
            causes=["it was trained on another base model", "the file is incomplete, or its names were changed"],
            remedy="load it on the base model that it was trained on, or save it again",
        )


def hidden_by_names(wanted: Iterable[str], found: Collection[str], others: Iterable[str]) -> list[str]:
    """Of the names wanted, those that are left out because a part of them is another adapter's name.

    PEFT leaves such out before it asks a method what to save: beside an adapter "0", all of layers.0.
    """
    parts = set(others)
    return [key for key in wanted if key not in found and not parts.isdisjoint(key.split("."))]


def check_hidden(hidden: list[str], given: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> None:
    """Check that what PEFT left out of a state can be taken from the model instead, since the state is the model's.

    Args:
        hidden: names that were left out.
        given: what was not.
        model: the model's parameters.

    Raises:
        HoldfastError: the state was gathered or changed, so that the model does not hold what is to be saved.
    """
    if any(given[key].data_ptr() != model[key].data_ptr() for key in given.keys() & model.keys()):
        raise HoldfastError(
            f"{hidden[0]} can't be told from another adapter's parameters, whose name is a part of this name",
            wanted="adapters whose names no part of the model has",
            remedy="load the other adapter under another name (or delete it) before saving",
        )
