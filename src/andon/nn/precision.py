"""What must not be rounded to bfloat16 when a training on a GPU rounds the rest."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def single(x: Tensor) -> AbstractContextManager[Any]:
    """Compute what follows in the precision of its inputs, where `x` lies on a device whose training is rounded."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
