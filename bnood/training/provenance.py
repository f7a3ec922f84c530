"""What a result was made with: versions, commit, machine."""

import importlib.metadata
import os
import platform
import re
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "wandb", "numpy")


def made_with() -> dict[str, Any]:
    """The versions of Python and of the packages that results depend on, the commit, and the machine."""
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
    return {"versions": versions, "commit": commit(), "machine": machine()}


def commit() -> str | None:
    """The commit of the checkout that this code lies in, ``-dirty`` if it has changes; None outside git."""
    git, found = ["git", "-C", str(Path(__file__).parent)], ""
    with suppress(FileNotFoundError, subprocess.CalledProcessError):
        # Fails where this file is installed into some other project's checkout.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(describe, capture_output=True, text=True).stdout.strip()
    return found or None


def machine() -> str:
    """Accelerator, or processor with the number of threads that torch uses."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} device(s))"
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    name = found[1] if found else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
