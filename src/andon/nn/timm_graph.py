"""Build a feature graph from a network of the package timm and a file of its weights. Needs torch and timm.

timm defines the network and its feature maps; the weights come from a file on this machine, never from the internet. No
code from the file is executed: it is safetensors, or PyTorch's format with tensors only. The input of the graph is
images in [-1, 1], as for every feature graph; another standardisation of the network becomes its first operation.
"""

import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon import files
from andon.engines import runtime
from andon.errors import AndonError, counted, unknown
from andon.graphs import features
from andon.graphs.features import Sidecar, Stage
from andon.nn.learned import export

SIDE = 32  # pixels: sizes of images are multiples of it, and of the network's largest stride
MOST_LACKING = 3  # positions per side: as in the first map of Xception, after two layers without padding
TOLERANCE = 1e-3  # relative difference of the graph from torch


def write(network: str, weights: Path, sha256: str, folder: Path) -> Path:
    """Build the graph of `network` with weights from a file, and its sidecar for `graphs.features`, in a folder.

    sha256: expected digest of the file; empty: any. Errors: AndonError when timm is missing or does not have the
    network, and when the file is damaged, or contains weights of another network.
    """
    net, mean, deviation = create(network)
    from timm import __version__

    state, actual = read(weights, sha256)
    fill(net, state, network, weights)
    model, stages = graph(net, network, mean, deviation)
    files.make_folder(folder)
    sidecar = Sidecar(
        sha256=features.digest(model),
        stages=[(stage.channels, stage.stride) for stage in stages],
        weights=actual,
        made_with=f"timm {__version__}",
    )
    path = folder / features.file_name(network)
    files.write(path, model.SerializeToString(deterministic=True))
    files.write(folder / f"{network}.json", sidecar.model_dump_json(indent=2).encode())
    return path


def create(network: str) -> tuple[nn.Module, Sequence[float], Sequence[float]]:
    """Return the untrained network, and the mean and the deviation of its input in [0, 1]. AndonError as in `write`."""
    try:
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision, which timm needs, raises RuntimeError with another version of torch
        raise AndonError(
            f"{network}: timm cannot be imported ({error}). Expected timm, with a torchvision for this version of "
            "torch. Install it: pip install 'andon[timm]'"
        ) from None
    if not timm.is_model(network):
        raise AndonError(unknown("network of timm", network, timm.list_models()))
    net = timm.create_model(network, pretrained=False).eval()
    return net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"]


def read(weights: Path, sha256: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors in a file, and its SHA-256, which is compared with `sha256`, if set, before parsing."""
    try:
        content = weights.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AndonError(f"{weights}: cannot be read: {reason}. Expected a file of weights.") from None
    actual = files.digest(content)
    if sha256 and actual != sha256.strip().lower():
        raise AndonError(
            f"{weights}: SHA-256 {actual}, expected {sha256.strip().lower()}; the file is damaged or another one. "
            "Download it again, or correct --sha256."
        )
    try:
        if weights.suffix == ".safetensors":
            from safetensors.torch import load

            state: Any = load(content)
        else:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except ImportError as error:
        raise AndonError(f"{weights}: reading it needs {error.name}. Install it: pip install 'andon[timm]'") from None
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError, _safetensors_error()) as error:
        raise AndonError(
            f"{weights}: no weights can be read from it ({str(error).partition(chr(10))[0]}). Expected a .safetensors "
            "file, or a PyTorch file that contains tensors only."
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AndonError(f"{weights}: contains no named tensors. Expected the weights of a network of timm.")
    return dict(state), actual


def _safetensors_error() -> type[Exception]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return ValueError
    error: type[Exception] = SafetensorError
    return error


def fill(net: nn.Module, state: Mapping[str, Tensor], network: str, weights: Path) -> None:
    """Load tensors into a network. AndonError when they belong to another network.

    Tensors of the classifier may be missing or different, because features do not depend on it.
    """
    own = net.state_dict()
    config = getattr(net, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)

    def head(name: str) -> bool:
        return any(name.startswith(f"{one}.") for one in heads)

    # The number of batches of a normalisation is not in old files, and does not affect the result.
    required = {name for name in own if not head(name) and not name.endswith("num_batches_tracked")}
    missing = sorted(required - set(state))
    unknown_names = sorted(name for name in state if name not in own and not head(name))
    reshaped = sorted(name for name in required & set(state) if state[name].shape != own[name].shape)
    for names, what in ((missing, "missing"), (unknown_names, "unknown"), (reshaped, "of another shape")):
        if names:
            raise AndonError(
                f"{weights}: not the weights of {network}: {counted(len(names), 'tensor')} {what}, such as "
                f"'{names[0]}'; expected {len(own)} tensors. Use the file that timm publishes for {network}."
            )
    net.load_state_dict({name: state[name] if name in required else value for name, value in own.items()})
    if not all(bool(value.isfinite().all()) for value in net.state_dict().values()):
        raise AndonError(f"{weights}: contains numbers that are not finite. Download the file again.")


class Taps(nn.Module):
    """A network whose outputs are the maps of some of its modules."""

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, modules: Sequence[str], mean: Sequence[float], deviation: Sequence[float]):
        """Select the modules by name; mean, deviation: standardisation of images in [0, 1] for the network."""
        super().__init__()
        self.net, self.names = net, list(modules)
        self._maps: dict[str, Tensor] = {}
        for name in self.names:
            net.get_submodule(name).register_forward_hook(self._keep(name))
        # From [-1, 1]: ((x + 1) / 2 − mean) / deviation = x · scale + shift.
        scale, shift = [0.5 / d for d in deviation], [(0.5 - m) / d for m, d in zip(mean, deviation, strict=True)]
        self.plain = all(s == 1 for s in scale) and not any(shift)
        self.register_buffer("scale", torch.tensor(scale).view(-1, 1, 1))
        self.register_buffer("shift", torch.tensor(shift).view(-1, 1, 1))

    def _keep(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._maps[name] = output

        return hook

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (n, 3, h, w) in [-1, 1] → the map of each module."""
        self._maps.clear()
        self.net.forward_features(images if self.plain else images * self.scale + self.shift)  # type: ignore[operator]
        return tuple(self._maps.pop(name) for name in self.names)


def graph(
    net: nn.Module, network: str, mean: Sequence[float], deviation: Sequence[float]
) -> tuple[onnx.ModelProto, list[Stage]]:
    """Export a network: images (n, 3, h, w) in [-1, 1] → `block<i>` for each stage in timm's list; also return stages.

    A map that is smaller than the image divided by the stride, because of layers without padding, is padded by
    repetition of its border.
    """
    info = getattr(net, "feature_info", None)
    if not isinstance(info, Sequence) or not info:
        raise AndonError(f"{network}: timm lists no feature maps for it. Use a convolutional network of timm.")
    taps = Taps(net, [entry["module"] for entry in info], mean, deviation).eval()
    stages = [Stage(f"block{i}", entry["num_chs"], entry["reduction"]) for i, entry in enumerate(info)]
    unit = max(SIDE, *(stage.stride for stage in stages))
    lacking = [_lacking(x, stage, 2 * unit, network) for x, stage in zip(_run(taps, 2 * unit), stages, strict=True)]
    for x, stage, lacks in zip(_run(taps, 3 * unit), stages, lacking, strict=True):
        if _lacking(x, stage, 3 * unit, network) != lacks:
            raise AndonError(
                f"{network}: the size of its map {stage.name} is not proportional to that of the image. Choose another "
                "network."
            )
    sizes = {0: torch.export.Dim("n"), 2: unit * torch.export.Dim("h"), 3: unit * torch.export.Dim("w")}
    names = [stage.name for stage in stages]
    model = export(taps, torch.zeros(2, 3, 2 * unit, 2 * unit), sizes, "images", names, opset=18)
    model = onnx.version_converter.convert_version(model, 17)  # as the other feature graphs
    for node in model.graph.node:  # the converter does not remove this attribute, which opset 17 does not have
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
            node.attribute.remove(attribute)
    for stage, lacks in zip(stages, lacking, strict=True):
        if lacks:
            _widen(model, stage.name, lacks)
    _compare(taps, lacking, model, 2 * unit, network)
    return model, stages


def _run(taps: Taps, side: int) -> tuple[Tensor, ...]:
    with torch.no_grad():
        maps: tuple[Tensor, ...] = taps(torch.zeros(2, 3, side, side))
    return maps


def _lacking(x: Tensor, stage: Stage, side: int, network: str) -> int:
    """Return the number of missing positions per side of a map, compared with side / stride."""
    expected = side // stage.stride
    lacking = expected - x.shape[-1]
    if x.dim() != 4 or x.shape[1] != stage.channels or x.shape[-2] != x.shape[-1] or not 0 <= lacking <= MOST_LACKING:
        raise AndonError(
            f"{network}: its map {stage.name} is {tuple(x.shape)} for images of {side} px; expected {stage.channels} "
            f"channels of {expected} by {expected}. Choose a purely convolutional network."
        )
    return lacking


def _edges(lacking: int) -> tuple[int, int]:
    return lacking // 2, lacking - lacking // 2


def _widen(model: onnx.ModelProto, name: str, lacking: int) -> None:
    """Pad one output of a graph by `lacking` positions per side, by repetition of its border."""
    inner = f"{name}_inside"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, value_name in enumerate(names):
                if value_name == name:
                    names[i] = inner
    before, after = _edges(lacking)
    pads = np.array([0, 0, before, before, 0, 0, after, after], np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(pads, f"{name}_pads"))
    model.graph.node.append(onnx.helper.make_node("Pad", [inner, f"{name}_pads"], [name], mode="edge"))
    (value,) = (value for value in model.graph.output if value.name == name)
    for axis, size in ((2, "height"), (3, "width")):
        value.type.tensor_type.shape.dim[axis].dim_param = f"{name}_{size}"


def _compare(taps: Taps, lacking: Sequence[int], model: onnx.ModelProto, side: int, network: str) -> None:
    """Compare the graph with torch on a picture of noise. AndonError when they differ by more than TOLERANCE."""
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pads = [_edges(lacks) * 2 for lacks in lacking]
        expected = [F.pad(x, pad, mode="replicate").numpy() for x, pad in zip(taps(images), pads, strict=True)]
    actual = runtime.session(model).run(None, {"images": images.numpy()})
    pairs = zip(expected, actual, strict=True)
    difference = max(float(abs(a - b).max()) / max(float(abs(a).max()), 1e-6) for a, b in pairs)
    if not difference <= TOLERANCE:
        raise AndonError(
            f"{network}: the graph differs from torch by {difference:.2g} of the largest value; expected at most "
            f"{TOLERANCE:g}. No file was written. Report this, with the name of the network."
        )
