"""Build a feature graph from a network of the package timm and a file of its weights. Needs torch and timm.

timm knows how a network is built and where its feature maps lie; the weights come from a file on this machine, never
from the network. The file is read without running anything that it holds: safetensors, or PyTorch's own format with
tensors only. The graph takes images in [-1, 1] like every feature graph; what else the network wants of its input, such
as ImageNet's mean and deviation, becomes its first operation.
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
from andon.errors import AndonError, unknown
from andon.graphs import features
from andon.graphs.features import Sidecar, Stage
from andon.nn.learned import export

SIDE = 32  # pixels: sizes are multiples of it, or of the network's largest stride
MOST_LACKING = 3  # positions a side; Xception's first map, of two layers without padding, lacks so many
TOLERANCE = 1e-3  # of the graph against torch


def write(network: str, weights: Path, sha256: str, folder: Path) -> Path:
    """Build `network` with the weights in a file, into a folder: the graph, and its sidecar for `graphs.features`.

    `sha256` is what the file must have; empty: any. AndonError when timm is missing or does not know the network, and
    when the file is damaged, foreign, or another network's.
    """
    net, mean, deviation = create(network)
    from timm import __version__

    state, found = read(weights, sha256)
    fill(net, state, network, weights)
    model, stages = graph(net, network, mean, deviation)
    files.make_folder(folder)
    sidecar = Sidecar(
        sha256=features.digest(model),
        stages=[(stage.channels, stage.stride) for stage in stages],
        weights=found,
        made_with=f"timm {__version__}",
    )
    path = folder / features.file(network)
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
    ) as error:  # torchvision, which timm needs, raises the latter beside another torch
        raise AndonError(
            f"{network}: timm cannot be imported ({error}). Expected timm, with a torchvision that fits this torch. "
            "Install it: pip install 'andon[timm]'"
        ) from None
    if not timm.is_model(network):
        raise AndonError(unknown("network of timm", network, timm.list_models()))
    net = timm.create_model(network, pretrained=False).eval()
    return net, net.pretrained_cfg["mean"], net.pretrained_cfg["std"]


def read(weights: Path, sha256: str) -> tuple[dict[str, Tensor], str]:
    """Read the tensors in a file, and its SHA-256; where one is given, the file must have it before it is parsed."""
    try:
        content = weights.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise AndonError(f"{weights}: cannot be read: {reason}. Expected a file of weights.") from None
    found = files.digest(content)
    if sha256 and found != sha256.strip().lower():
        raise AndonError(
            f"{weights}: SHA-256 {found}, expected {sha256.strip().lower()}; the file is damaged or another one. "
            "Fetch it again, or correct --sha256."
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
            "file, or a PyTorch file that holds tensors only."
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise AndonError(f"{weights}: holds no table of tensors by name. Expected the weights of a network of timm.")
    return dict(state), found


def _safetensors_error() -> type[Exception]:
    try:
        from safetensors import SafetensorError
    except ImportError:
        return ValueError
    found: type[Exception] = SafetensorError
    return found


def fill(net: nn.Module, state: Mapping[str, Tensor], network: str, weights: Path) -> None:
    """Put the tensors of a file into a network. AndonError when they are another network's.

    Only the classifier, on which no feature depends, may differ or be absent.
    """
    own = net.state_dict()
    config = getattr(net, "pretrained_cfg", None) or {}
    heads = config.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)

    def head(name: str) -> bool:
        return any(name.startswith(f"{one}.") for one in heads)

    # How many batches a normalisation has seen is not in old files, and nothing rests on it.
    needed = {name for name in own if not head(name) and not name.endswith("num_batches_tracked")}
    missing = sorted(needed - set(state))
    strange = sorted(name for name in state if name not in own and not head(name))
    unlike = sorted(name for name in needed & set(state) if state[name].shape != own[name].shape)
    for names, what in ((missing, "lacks"), (strange, "has, unlike the network,"), (unlike, "has in another shape")):
        if names:
            raise AndonError(
                f"{weights}: not the weights of {network}: it {what} {len(names)} of {len(own)} tensors, such as "
                f"'{names[0]}'. Expected the file that timm publishes for {network}."
            )
    net.load_state_dict({name: state[name] if name in needed else value for name, value in own.items()})
    if not all(bool(value.isfinite().all()) for value in net.state_dict().values()):
        raise AndonError(f"{weights}: holds numbers that are not finite. Fetch the file again.")


class Taps(nn.Module):
    """A network that gives the maps of some of its modules."""

    scale: Tensor
    shift: Tensor

    def __init__(self, net: nn.Module, modules: Sequence[str], mean: Sequence[float], deviation: Sequence[float]):
        """Take the modules by name, and how the network wants its input standardised."""
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
    """Export a network: images (n, 3, h, w) in [-1, 1] → `block<i>` for every stage that timm lists, and the stages.

    A map a little smaller than the image over its stride, as layers before it do not pad, has its edge repeated.
    """
    info = getattr(net, "feature_info", None)
    if not isinstance(info, Sequence) or not info:
        raise AndonError(f"{network}: timm lists no feature maps of it. Expected a convolutional network of timm.")
    taps = Taps(net, [entry["module"] for entry in info], mean, deviation).eval()
    stages = [Stage(f"block{i}", entry["num_chs"], entry["reduction"]) for i, entry in enumerate(info)]
    unit = max(SIDE, *(stage.stride for stage in stages))
    lacking = [_lacking(x, stage, 2 * unit, network) for x, stage in zip(_run(taps, 2 * unit), stages, strict=True)]
    for x, stage, lacks in zip(_run(taps, 3 * unit), stages, lacking, strict=True):
        if _lacking(x, stage, 3 * unit, network) != lacks:
            raise AndonError(f"{network}: its map {stage.name} does not grow with the image. Choose another network.")
    sizes = {0: torch.export.Dim("n"), 2: unit * torch.export.Dim("h"), 3: unit * torch.export.Dim("w")}
    names = [stage.name for stage in stages]
    model = export(taps, torch.zeros(2, 3, 2 * unit, 2 * unit), sizes, "images", names, opset=18)
    model = onnx.version_converter.convert_version(model, 17)  # what the other feature graphs are of
    for node in model.graph.node:  # opset 17 has no such attribute, and the converter forgets to take it away
        for attribute in [a for a in node.attribute if a.name == "noop_with_empty_axes" and not a.i]:
            node.attribute.remove(attribute)
    for stage, lacks in zip(stages, lacking, strict=True):
        if lacks:
            _widen(model, stage.name, lacks)
    _compare(taps, lacking, model, 2 * unit, network)
    return model, stages


def _run(taps: Taps, side: int) -> tuple[Tensor, ...]:
    with torch.no_grad():
        found: tuple[Tensor, ...] = taps(torch.zeros(2, 3, side, side))
    return found


def _lacking(x: Tensor, stage: Stage, side: int, network: str) -> int:
    """How many positions a map lacks to have the image's side over the stride."""
    wanted = side // stage.stride
    lacks = wanted - x.shape[-1]
    if x.dim() != 4 or x.shape[1] != stage.channels or x.shape[-2] != x.shape[-1] or not 0 <= lacks <= MOST_LACKING:
        raise AndonError(
            f"{network}: its map {stage.name} is {tuple(x.shape)} for images of {side} px; expected {stage.channels} "
            f"channels of {wanted} by {wanted}. Choose a plain convolutional network."
        )
    return lacks


def _edges(lacks: int) -> tuple[int, int]:
    return lacks // 2, lacks - lacks // 2


def _widen(model: onnx.ModelProto, name: str, lacks: int) -> None:
    """Repeat the edge of one output of a graph, `lacks` positions a side in all."""
    inner = f"{name}_inside"
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, each in enumerate(names):
                if each == name:
                    names[i] = inner
    before, after = _edges(lacks)
    pads = np.array([0, 0, before, before, 0, 0, after, after], np.int64)
    model.graph.initializer.append(onnx.numpy_helper.from_array(pads, f"{name}_pads"))
    model.graph.node.append(onnx.helper.make_node("Pad", [inner, f"{name}_pads"], [name], mode="edge"))
    (value,) = (value for value in model.graph.output if value.name == name)
    for axis, size in ((2, "height"), (3, "width")):
        value.type.tensor_type.shape.dim[axis].dim_param = f"{name}_{size}"


def _compare(taps: Taps, lacking: Sequence[int], model: onnx.ModelProto, side: int, network: str) -> None:
    """Hold the graph against torch on a picture of noise."""
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        pads = [_edges(lacks) * 2 for lacks in lacking]
        expected = [F.pad(x, pad, mode="replicate").numpy() for x, pad in zip(taps(images), pads, strict=True)]
    found = runtime.session(model).run(None, {"images": images.numpy()})
    apart = max(float(abs(a - b).max()) / max(float(abs(a).max()), 1e-6) for a, b in zip(expected, found, strict=True))
    if not apart <= TOLERANCE:
        raise AndonError(
            f"{network}: the graph differs from torch by {apart:.2g} of the largest value; at most {TOLERANCE:g} is "
            "allowed. Nothing was written. Please report this with the network's name."
        )
