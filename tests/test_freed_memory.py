"""Freed memory is reused: a second pass over large arrays takes no new pages from the system."""

import subprocess
import sys

import pytest

PAGES = """
import resource
from bnood.errors import keep_freed_memory
keep_freed_memory()
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (1 << 26)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the setting is glibc's")
def test_freed_memory_is_reused() -> None:
    found = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    assert int(found.stdout) < 100  # 64 MiB are 16,384 pages of 4 KiB
