"""Single precision for computations that must not use bfloat16 in a training on a GPU."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def single(x: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast in a `with` block, if it is enabled for the device of `x`."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
