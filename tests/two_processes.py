"""Running a script of the tests in two processes that know of one another."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def in_two(script: str | Path, out: Path) -> Any:
    """What a script under torchrun wrote to `out`, as JSON."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    finished = subprocess.run(
        [*launcher, str(script), str(out)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return json.loads(out.read_text())
