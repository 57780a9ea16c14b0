"""Feature extractors of the metrics, and LPIPS as a distance between images.

torchmetrics and torch-fidelity define Inception and LPIPS; they are imported only when needed (they take seconds).
"""

import difflib
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from fewshot_ray.data.images import to_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.digit_network import WEIGHTS_FILE, DigitNetwork
from fewshot_ray.models.memory import in_parts
from fewshot_ray.models.weights import INCEPTION, VGG16, Weights, find_weights, read_weights, serialised

EXTRACTORS = ("digits", "inception")


class Extractor(Protocol):
    """Features of images, and how a value's measurement protocol describes them."""

    @property
    def id(self) -> str:
        """Name of the network and the layer."""

    @property
    def weights_hash(self) -> str:
        """The first 12 hex digits of the weight file's sha256."""

    @property
    def resize(self) -> str:
        """How images are resized, in words."""

    def features(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] -> float32 [N, D] on the CPU, in batches, without gradients."""


@dataclass(frozen=True)
class DigitExtractor:
    """The bundled digit network's penultimate layer, D = 64; 8x8 grey images only."""

    network: DigitNetwork
    weights_hash: str
    device: torch.device
    id: str = "digit-network-64"
    resize: str = "none"
    batch_images: int = 512

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features [N, 64] of uint8 [N, 1, 8, 8]. Raises UserError on images of another size or with colour."""
        if images.shape[1:] != (1, 8, 8):
            size = "x".join(str(side) for side in images.shape[1:])
            raise UserError(f"evaluate.extractor: 'digits' reads 1x8x8 images, not {size}; 'inception' is right for these")

        def of(batch: Tensor) -> Tensor:
            return self.network.features(to_model_range(batch.to(self.device))).cpu()

        return torch.cat(in_parts(of, images, self.batch_images))


@dataclass(frozen=True)
class InceptionExtractor:
    """Inception-V3 as FID uses it (the 2015-12-05 graph, pool features, D = 2048), by torchmetrics.

    Images come in at 299x299 through an antialiased bicubic resize, rounded to 8 bits (Parmar et al. 2022's convention).
    """

    network: nn.Module
    weights_hash: str
    device: torch.device
    id: str = "inception-v3-2048"
    resize: str = "antialiased bicubic to 299x299"
    batch_images: int = 32

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Features [N, 2048] of uint8 [N, C, H, W], grey or RGB."""

        def of(batch: Tensor) -> Tensor:
            features: Tensor = self.network(resize_rgb(batch.to(self.device), 299).round().to(torch.uint8))
            return features.float().cpu()

        return torch.cat(in_parts(of, images, self.batch_images))


class PerceptualDistance:
    """LPIPS with the VGG trunk (Zhang et al. 2018), by torchmetrics, on images resized to `size` x `size`."""

    id = "lpips-vgg"

    def __init__(self, network: Any, weights_hash: str, device: torch.device, *, size: int = 256, batch_images: int = 8) -> None:
        self.network = network
        self.weights_hash = weights_hash
        self.device = device
        self.size = size
        self.batch_images = batch_images
        self.resize = f"antialiased bicubic to {size}x{size}"

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of each pair, [N] float32 on the CPU, from uint8 a and b [N, C, H, W]."""
        if a.shape != b.shape:
            raise ValueError(f"images {tuple(a.shape)} and {tuple(b.shape)}: two sets of one shape are right")

        def of(rows: Tensor) -> Tensor:
            distances: Tensor = self.network(self._prepared(a[rows]), self._prepared(b[rows]))
            return distances.flatten(1).mean(1).cpu()

        return torch.cat(in_parts(of, torch.arange(len(a)), self.batch_images))

    def differentiable(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS of each pair, [N], of images [N, C, H, W] in [-1, 1] at their own size; with a gradient in both."""
        distances: Tensor = self.network(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten(1).mean(1)
        return distances

    @torch.no_grad()
    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of all pairs, [N, M] float32 on the CPU, from uint8 a [N, C, H, W] and b [M, C, H, W].

        Blocks of images: a VGG map of a 256x256 image takes 32 MB, too much to hold all maps at once.
        """

        def rows(a_block: Tensor) -> Tensor:
            a_maps = self._maps(a_block)
            return torch.cat(in_parts(lambda b_block: self._block(a_maps, self._maps(b_block)), b, self.batch_images), 1)

        return torch.cat(in_parts(rows, a, self.batch_images))

    def _prepared(self, images: Tensor) -> Tensor:
        return to_model_range(resize_rgb(images.to(self.device), self.size))

    def _maps(self, images: Tensor) -> list[Tensor]:
        """The trunk's five maps [N, C_l, H_l, W_l], each position's channels at unit length."""
        maps = self.network.net(self.network.scaling_layer(self._prepared(images)))
        return [m / (1e-8 + m.square().sum(1, keepdim=True)).sqrt() for m in maps]

    def _block(self, a_maps: list[Tensor], b_maps: list[Tensor]) -> Tensor:
        """sum_l mean_hw w_l . (a_l - b_l)^2 of all pairs of two blocks of images (Zhang et al. 2018, Eq. 1), [n, m]."""
        rows = []
        for i in range(len(a_maps[0])):
            layers = [head((x[i : i + 1] - y).square()) for head, x, y in zip(self.network.lins, a_maps, b_maps, strict=True)]
            rows.append(torch.stack([layer.flatten(1).mean(1) for layer in layers]).sum(0))
        return torch.stack(rows).cpu()


def load_extractor(name: str, *, device: str | torch.device, weights: str | None = None) -> Extractor:
    """The extractor called `name`, one of EXTRACTORS, on `device`; `weights` is a file to read instead of the library's own.

    Raises UserError on an unknown name and where the weights can't be loaded.
    """
    if name == "digits":
        if weights is not None:
            raise UserError(f"evaluate.extractor_weights: {weights!r} is given, but those of 'digits' are bundled; leave the field out")
        return _digit_extractor(torch.device(device))
    if name == "inception":
        return _inception_extractor(torch.device(device), find_weights(INCEPTION, weights))
    nearest = difflib.get_close_matches(name, EXTRACTORS, n=1, cutoff=0.0)[0]
    raise UserError(f"evaluate.extractor: there is no {name!r}; {', '.join(EXTRACTORS)} are right (did you mean {nearest}?)")


def load_perceptual(*, device: str | torch.device, weights: str | None = None, size: int = 256) -> PerceptualDistance:
    """LPIPS on `device`; `weights` is a local file of torchvision's VGG16, read instead of a download.

    torchmetrics contains the linear heads; only the trunk needs weights. Raises UserError where they can't be loaded.
    """
    trunk = find_weights(VGG16, weights)
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    network = _NoTrainLpips(pretrained=True, net="vgg", pnet_rand=True)
    _load_vgg_trunk(network.net, trunk)
    return PerceptualDistance(network.to(device), trunk.hash, torch.device(device), size=size)


def resize_rgb(images: Tensor, size: int) -> Tensor:
    """Images [N, C, H, W] in 0 .. 255, grey or RGB -> float32 [N, 3, size, size] in 0 .. 255, antialiased bicubic, as Pillow resizes.

    Differentiable in images that are floats.
    """
    rgb = images.float().expand(-1, 3, -1, -1)
    return interpolate(rgb, (size, size), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


@cache
def _digit_extractor(device: torch.device) -> DigitExtractor:
    weights = read_weights(str(WEIGHTS_FILE))
    network = DigitNetwork()
    network.load_state_dict(dict(weights.tensors))
    return DigitExtractor(network.eval().requires_grad_(False).to(device), weights.hash, device)


def inception_network(weights: Weights) -> nn.Module:
    """A fresh NoTrainInceptionV3 with these weights, frozen, on the CPU. Raises UserError where they are another network's."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    try:
        network: nn.Module = NoTrainInceptionV3("inception-v3-compat", ["2048"], serialised(weights))
    except RuntimeError as error:  # load_state_dict's, a line for each missing or extra name
        raise UserError(f"{weights.place}: not the weights of FID's Inception-V3; {INCEPTION.url} is right") from error
    return network


def _inception_extractor(device: torch.device, weights: Weights) -> InceptionExtractor:
    return InceptionExtractor(inception_network(weights).to(device), weights.hash, device)


def _load_vgg_trunk(slices: nn.Module, weights: Weights) -> None:
    """Fill LPIPS's five slices from torchvision's `features.<layer>.<weight or bias>`: slice1.0.weight is features.0.weight."""
    names = {name: "features." + name.split(".", 1)[1] for name in slices.state_dict()}
    missing = [source for source in names.values() if source not in weights.tensors]
    if missing:
        raise UserError(f"{weights.place}: {missing[0]} is missing; the weights of torchvision's VGG16 ({VGG16.url}) are right")
    try:
        slices.load_state_dict({name: weights.tensors[source] for name, source in names.items()})
    except RuntimeError as error:  # load_state_dict's, on shapes
        raise UserError(f"{weights.place}: the shapes are not those of torchvision's VGG16; {VGG16.url} is right") from error
