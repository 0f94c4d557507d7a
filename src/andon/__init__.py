"""Visual inspection of manufactured parts: trained on good parts, with a calibrated false-reject rate.

>>> from andon import Inspector, train
>>> train("parts/good", "bottle.andon")
>>> Inspector.load("bottle.andon").inspect("incoming/017.png").verdict
<Verdict.PASS: 'PASS'>
"""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from andon.errors import AndonError
    from andon.inspection import Inspection, Verdict
    from andon.inspector import Inspector
    from andon.recipe import Recipe
    from andon.training.train import train

__all__ = ["AndonError", "Inspection", "Inspector", "Recipe", "Verdict", "train"]
__version__ = "0.1.0"

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime reads it when it is imported


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `import andon` is fast."""
    if name == "AndonError":
        from andon.errors import AndonError

        return AndonError
    if name in ("Inspection", "Verdict"):
        from andon import inspection

        return inspection.Inspection if name == "Inspection" else inspection.Verdict
    if name == "Inspector":
        from andon.inspector import Inspector

        return Inspector
    if name == "Recipe":
        from andon.recipe import Recipe

        return Recipe
    if name == "train":
        from andon.training.train import train

        return train
    raise AttributeError(f"module 'andon' has no attribute '{name}'")
