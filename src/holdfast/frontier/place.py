"""Which process of which machine is at a run: a run whose process is gone can be taken up at once."""

import os
import socket
import uuid
from functools import cache
from pathlib import Path
from typing import Any


@cache
def machine_id() -> str:
    """This machine since its last start, and the space in which its process numbers count."""
    facts = [socket.gethostname(), f"{uuid.getnode():x}"]
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        place = Path(path)
        try:
            facts.append(str(place.readlink()) if place.is_symlink() else place.read_text().strip())
        except OSError:
            continue
    return " ".join(facts)


def signature() -> dict[str, Any]:
    """This process, as a study keeps it."""
    import psutil

    return {
        "host": socket.gethostname(),
        "machine": machine_id(),
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
    }


def is_gone(signed: dict[str, Any]) -> bool:
    """Whether a process of this machine has ended; False for one of another machine, of which nothing is known."""
    import psutil

    if signed.get("machine") != machine_id():
        return False
    try:
        return abs(psutil.Process(signed["pid"]).create_time() - signed["started"]) > 1
    except psutil.NoSuchProcess:
        return True
