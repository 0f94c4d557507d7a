"""Erosion, dilation and gradient are equal to those of OpenCV; number of pairwise maxima."""

import cv2
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.detectors.transform_classification.morphology import Case, Operation, transform  # noqa: E402
from andon.inspection import Array, Pixels  # noqa: E402

OPENCV: dict[Operation, int] = {
    "erosion": cv2.MORPH_ERODE,
    "dilation": cv2.MORPH_DILATE,
    "gradient": cv2.MORPH_GRADIENT,
}
SIDES = [(1, 1), (1, 3), (2, 1), (3, 3), (4, 7), (8, 8), (28, 5), (13, 28), (37, 53)]
BEYOND = [(60, 2), (5, 90), (120, 121)]  # larger than the image


def pictures(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (3, 2, 37, 53), dtype=np.uint8)


def opencv(images: Array, case: Case) -> Array:
    kernel = np.ones((case.height, case.width), np.uint8)
    planes = [
        cv2.morphologyEx(plane, OPENCV[case.operation], kernel) for plane in images.reshape(-1, *images.shape[2:])
    ]
    return np.stack(planes).reshape(images.shape)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize("operation", OPENCV)
def test_results_are_equal_to_those_of_opencv(operation: Operation, kind: type) -> None:
    images = pictures().astype(kind)
    strided = torch.tensor(images.transpose(0, 1, 3, 2)).transpose(2, 3)  # not contiguous in memory
    cases = [Case(operation, *sides) for sides in SIDES + BEYOND]
    for tensor in (torch.tensor(images), strided):
        for case, result in zip(cases, transform(tensor, cases), strict=True):
            assert result.numpy().dtype == kind
            np.testing.assert_array_equal(result.numpy(), opencv(images, case), err_msg=str(case))


def test_anchor_of_an_even_side_reaches_further_left_and_up() -> None:
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    rows, columns = torch.nonzero(transform(image, [Case("dilation", 4, 2)])[0][0, 0], as_tuple=True)
    # Output x depends on inputs x - 2 to x + 1, so input 4 affects outputs 3 to 6.
    assert set(columns.tolist()) == {3, 4, 5, 6}
    assert set(rows.tolist()) == {4, 5}


def test_values_outside_the_image_have_no_effect() -> None:
    dark, bright = torch.full((1, 1, 5, 5), -7.0), torch.full((1, 1, 5, 5), 7.0)
    assert (transform(dark, [Case("dilation", 4, 4)])[0] == -7).all()
    assert (transform(bright, [Case("erosion", 4, 4)])[0] == 7).all()
    assert (transform(bright, [Case("gradient", 3, 3)])[0] == 0).all()


def test_sizes_share_running_maxima(monkeypatch: pytest.MonkeyPatch) -> None:
    images, widths = torch.rand(1, 1, 64, 64), (1, 8, 28, 56)
    calls = 0

    def counting(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return original(x, y)

    original = torch.maximum
    monkeypatch.setattr(torch, "maximum", counting)
    transform(images, [Case(of, w, h) for of in ("dilation", "gradient") for w in widths for h in widths])
    # Six passes (2, 4, 8, 16, 28, 56) along the rows, and six down the columns for all widths together.
    assert calls == 6 + 6
    calls = 0
    transform(images, [Case("erosion", 56, 56)])
    assert calls == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_and_cpu_results_are_equal() -> None:
    images = torch.tensor(pictures())
    cases = [Case(operation, *sides) for operation in OPENCV for sides in SIDES]
    for on_gpu, on_cpu in zip(transform(images.cuda(), cases), transform(images, cases), strict=True):
        assert torch.equal(on_gpu.cpu(), on_cpu)
