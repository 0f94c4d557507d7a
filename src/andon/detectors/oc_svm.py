"""oc-svm: one-class support vector machine on the deep features of a whole image.

Paper: Schölkopf, Platt, Shawe-Taylor, Smola & Williamson, "Estimating the Support of a High-Dimensional Distribution",
Neural Computation 13(7), 2001. The embedding and the map are those of `deep-knn`; the machine is scikit-learn's. Source
[3] compares with one-class classifiers on deep features. Symbols: f embedding of an image, standardised, s_i support
vectors with weights α_i, ρ offset, γ width of the kernel, ν greatest share of good images outside the support.

Differs from the paper:
- The score is ρ − Σ α_i exp(−γ ‖f − s_i‖²) itself, not its sign.
- A distance between pooled features has no position, so the map is that of `deep-knn`, which is not of this score.
"""

from typing import Annotated, Any, ClassVar, Self

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v17 as op
from pydantic import BaseModel, Field
from sklearn.svm import OneClassSVM

from andon.detector import QUIET, Run, Tiles
from andon.detectors.deep_knn import DeepKnn
from andon.detectors.deep_knn import Settings as Embedding
from andon.graphs.parts import input_tiles
from andon.inspection import Pixels, Scores


class Settings(Embedding):
    """Settings of `oc-svm`; `neighbours` is for the map only."""

    nu: Annotated[float, Field(gt=0, le=1)] = 0.1
    """ν, greatest share of the good training images that may lie outside the support."""
    gamma: Annotated[float, Field(gt=0)] = 1.0
    """γ of the Gaussian kernel, multiplied by the number of features; 1: the default of scikit-learn."""


class OcSvm(DeepKnn):
    """A one-class SVM with a Gaussian kernel on max-pooled deep features."""

    name: ClassVar[str] = "oc-svm"
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": {}}
    config: Settings

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Embed the good tiles, and find the support vectors among them."""
        super().fit(tiles, run)
        self._svm = OneClassSVM(nu=self.config.nu, gamma=self.config.gamma / self._width())
        self._svm.fit(self._good.rows.astype(np.float64))
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score with scikit-learn."""
        maps = super().score(tiles).pixel
        return Scores((-self._svm.decision_function(self._embedding(tiles))).astype(np.float32), maps)

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score float32 (n,), map float32 (n, t, t), embedding float32 (n, d)."""
        inner = super().graph()
        tiles = input_tiles(self._shape, self._channels, self._depth)
        outputs = dict(spox.inline(inner)(tiles=tiles))
        support = self._svm.support_vectors_.astype(np.float32)
        difference = op.sub(op.unsqueeze(outputs["embedding"], op.const([1])), op.const(support[None]))  # (n, s, d)
        squares = op.reduce_sum(op.mul(difference, difference), op.const([2]), keepdims=0)
        kernel = op.exp(op.mul(squares, op.const(np.float32(-self._svm.gamma))))  # K(f, s_i) = exp(−γ ‖f − s_i‖²)
        total = op.matmul(kernel, op.const(self._svm.dual_coef_[0].astype(np.float32)))  # Σ α_i K(f, s_i)
        offset = np.float32(-self._svm.intercept_[0])  # ρ
        return spox.build({"tiles": tiles}, {**outputs, "score": op.sub(op.const(offset), total)})
