"""What every test starts from: no network, no writing outside temporary folders, few threads, fixed seeds."""

import os
import signal
from pathlib import Path

import pytest
import torch


def pytest_configure() -> None:
    """Before any test file imports wandb or starts threads.

    One thread, here and in the scripts that tests start: on a busy machine several of them wait for each other most of
    the time, and sums in another order would not be the same bit for bit.
    """
    os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell without job control starts background jobs deaf to Ctrl-C, which tests send to themselves.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def wandb_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's cache of artifacts would otherwise grow in the user's home."""
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "wandb-cache"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real images that ``BNOOD_DATA`` names; tests that need it are skipped without."""
    root = os.environ.get("BNOOD_DATA")
    if not root:
        pytest.skip("BNOOD_DATA does not name a folder of real images")
    if not Path(root).is_dir():
        pytest.skip(f"BNOOD_DATA names {root}, which is no folder")
    return Path(root)
