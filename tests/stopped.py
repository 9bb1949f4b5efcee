"""Sources that stop in the middle."""

from collections.abc import Iterator
from typing import Any

from networks import Batch, Network

from holdfast.anchor import Anchor

SAME = 1e-12  # the same numbers added in the same order


class Source:
    """Batches that stop with an error after so many, counted over all passes."""

    def __init__(self, batches: list[Batch], after: int | None = None, error: type[BaseException] = KeyboardInterrupt):
        self.batches, self.after, self.error = batches, after, error

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.batches:
            if self.after is not None:
                if self.after == 0:
                    raise self.error
                self.after -= 1
            yield batch

    def __len__(self) -> int:
        return len(self.batches)


def anchor_of(network: Network, source: Any, **options: Any) -> Anchor:
    """An anchor of the network as built."""
    options = {"targets": network.targets, "forward_loss": network.forward_loss, "progress": False} | options
    return Anchor.estimate(options.pop("model", None) or network.build(), source, **options)
