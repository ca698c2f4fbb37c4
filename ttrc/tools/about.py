"""What a figure or a fault belongs to: the machine, and the versions of what it ran with."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
import triton


def about(device: str) -> dict[str, str]:
    """device: as torch names it."""
    on_gpu = device.startswith("cuda")
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"{platform.machine()} CPU, no GPU",
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "triton": triton.__version__,
        "python": platform.python_version(),
        "ttrc": _installed(),
    }


def _installed() -> str:
    try:
        return version("ttrc")
    except PackageNotFoundError:
        return "not installed"
