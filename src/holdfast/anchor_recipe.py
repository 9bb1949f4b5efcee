"""The recipe of an anchor: everything `holdfast anchor` was asked for, validated before anything heavy starts."""

import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from holdfast.recipe import SAMPLE_LENGTH, DataSettings, Settings, layer_names

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{end}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for end, base in (("iB", 1024), ("B", 1000))
}


class AnchorRecipe(Settings):
    """One `holdfast anchor` run."""

    model: str
    source: DataSettings | None = None
    curvature: str = "kronecker"
    targets: str | list[str] = "all-linear"
    fisher: Literal["sampled", "data", "exact"] = "sampled"
    draws: int = Field(1, ge=1, description="labels drawn from the model for each item")
    per: Literal["token", "sequence"] = "token"
    keep: int = Field(256, ge=1, description="examples that curvatures of stored samples keep")
    max_items: int = Field(200_000, ge=1, description="stop after so many scored tokens")
    until: float | None = Field(None, gt=0, lt=1, description="or when the curvature is that stable")
    fraction: float = Field(1.0, gt=0, le=1, description="share of the positions that enter the sums")
    products: Literal["auto", "float32", "bfloat16"] = Field("auto", description="precision of the sums' products")
    memory: str | None = Field(None, description="bytes for the finished curvature, 4GiB say; wide sides are cut down")
    offload: Literal["cpu", "disk"] | None = Field(None, description="where running sums are kept")
    storage: Literal["float32", "bfloat16"] = Field("float32", description="of the files")
    samples: int = Field(256, ge=1, description="sequences sampled from the model for --source self")
    sample_length: int = Field(SAMPLE_LENGTH, ge=8, description="tokens per sampled sequence")
    length: int = Field(512, ge=2, description="tokens per sequence")
    batch_size: int = Field(8, ge=1, description="sequences per batch")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    seed: int = 0

    @field_validator("targets", mode="before")
    @classmethod
    def _names(cls, targets: Any) -> Any:
        return layer_names(targets)

    @field_validator("memory", mode="before")
    @classmethod
    def _amount(cls, memory: Any) -> Any:
        if memory is not None:
            bytes_of(str(memory))
        return memory if memory is None else str(memory)

    @model_validator(mode="after")
    def _coherent(self) -> Self:
        if self.draws > 1 and self.fisher != "sampled":
            raise ValueError(f"draws={self.draws} draws labels from the model, and fisher is {self.fisher!r}")
        return self


def bytes_of(amount: str) -> int:
    """Bytes of "4GiB", "500 MB" or "123456".

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", amount.strip())
    unit = {name.lower(): size for name, size in UNITS.items()}.get(found[2].lower()) if found else None
    if found is None or unit is None or float(found[1]) <= 0:
        raise ValueError("an amount of memory, such as 4GiB or 500MB")
    return round(float(found[1]) * unit)
