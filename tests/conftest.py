"""One thread and fixed seeds for every test."""

import os
import signal

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

pytest.register_assert_rewrite("laws", "adapted")
torch.set_num_threads(1)
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # started in the background by a shell: tests interrupt themselves
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    """Frozen stems under reentrant checkpointing are meant."""
    config.addinivalue_line("filterwarnings", "ignore:None of the inputs have requires_grad")


@pytest.fixture(autouse=True)
def seeded():
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)
