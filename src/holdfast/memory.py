"""Amounts of memory as users write and read them."""

import re

from holdfast.errors import HoldfastError

UNITS = {"": 1, "B": 1} | {
    f"{prefix}{ending}": base**power
    for power, prefix in enumerate("KMGT", start=1)
    for ending, base in (("iB", 1024), ("B", 1000))
}


def bytes_of(amount: int | str) -> int:
    """Bytes of 4_000_000_000, "4GiB" (1024^3), "500 MB" (10^6) or "123456".

    Raises:
        HoldfastError: anything else, or nothing at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", str(amount).strip())
    unit = {name.lower(): size for name, size in UNITS.items()}.get(found[2].lower()) if found else None
    size = round(float(found[1]) * unit) if found and unit else 0
    if size < 1:
        raise HoldfastError(f"{amount!r} is no amount of memory", wanted="bytes, such as 4GiB, 500MB or 2000000000")
    return size


def text_of(size: float) -> str:
    """Bytes for people: "7.3 GB", "650 MB", "12 KB"; powers of 1000, as in files."""
    for unit in ("B", "KB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if size < 9.95 and unit != "B" else f"{size:.0f} {unit}"
