"""LPIPS (Zhang et al. 2018), a distance between images, by torchmetrics, which is imported only when needed (it takes seconds)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fewshot_ray.data.images import to_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors.protocol import resize_rgb
from fewshot_ray.models.memory import in_parts
from fewshot_ray.models.weights import ALEXNET, SQUEEZENET, VGG16, Published, Weights, find_weights

Network = Literal["vgg", "alex", "squeeze"]
TRUNKS: Mapping[str, Published] = {"vgg": VGG16, "alex": ALEXNET, "squeeze": SQUEEZENET}
KEPT_BYTES = 4 << 30
"""Of embeddings that a set of images keeps: 128 at 256x256 with VGG, 32 MB each; on a GPU at most a quarter of what is free."""
HELD_IMAGES = 64
"""Of one side, when all pairs of two sets are computed: the other side goes past them once."""
NUMBERS_AT_ONCE = 1 << 16
"""Of an embedding, in one product: the sums over these are in float64."""
NEAR = 0.01
"""Share of the squared norms below which a distance is summed by differences: equal images are at exactly 0."""


class PerceptualDistance:
    """LPIPS on images resized to `size` x `size`.

    LPIPS is a squared Euclidean distance between *embeddings*: at each layer l the trunk's map, the channels of each position at unit
    length, times sqrt(w_l / (H_l W_l)) with the head's weights w_l >= 0 (Zhang et al. 2018, Eq. 1).
    """

    def __init__(
        self, network: Any, weights_hash: str, device: torch.device, *, trunk: Network = "vgg", size: int = 256, batch_images: int = 8
    ) -> None:
        self.network = network
        self.weights_hash = weights_hash
        self.device = device
        self.id = f"lpips-{trunk}"
        self.size = size
        self.batch_images = batch_images
        self.resize = f"antialiased bicubic to {size}x{size}"

    @torch.no_grad()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of each pair, [N] float32 on the CPU, from uint8 a and b [N, C, H, W]. Raises UserError where one isn't finite."""
        if a.shape != b.shape:
            raise ValueError(f"images {tuple(a.shape)} and {tuple(b.shape)}: two sets of one shape are right")

        def of(rows: Tensor) -> Tensor:
            distances: Tensor = self.network(self._prepared(a[rows]), self._prepared(b[rows]))
            return distances.flatten(1).mean(1).cpu()

        return self.checked(torch.cat(in_parts(of, torch.arange(len(a)), self.batch_images)))

    def differentiable(self, x: Tensor, y: Tensor) -> Tensor:
        """LPIPS of each pair, [N], of images [N, C, H, W] in [-1, 1] at their own size; with a gradient in both."""
        distances: Tensor = self.network(x.expand(-1, 3, -1, -1), y.expand(-1, 3, -1, -1)).flatten(1).mean(1)
        return distances

    def matrix(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of all pairs, [N, M] float32 on the CPU, from uint8 a [N, C, H, W] and b [M, C, H, W]."""
        first = self.embedded(a)
        if a is b:
            return first.within(torch.arange(len(a)))
        return first.distances(self.embedded(b), torch.arange(len(a)), torch.arange(len(b)))

    def embedded(self, images: Tensor) -> "Embedded":
        """The images uint8 [N, C, H, W] as a set whose embeddings are computed when they are needed, and kept as far as memory goes."""
        return Embedded(self, images)

    @torch.no_grad()
    def embedding(self, images: Tensor) -> Tensor:
        """[N, D] float32, on the device, of uint8 [N, C, H, W]: squared distances between rows are LPIPS."""
        maps = self.network.net(self.network.scaling_layer(self._prepared(images)))
        layers = []
        for features, head in zip(maps, self.network.lins, strict=True):
            length = (1e-8 + torch.linalg.vector_norm(features, dim=1, keepdim=True).square_()).sqrt_()
            weight = head.model[-1].weight / features[0, 0].numel()
            layers.append(features.mul_(weight.sqrt()).div_(length).flatten(1))  # in place: allocating 8 M numbers takes as long
        return torch.cat(layers, 1)

    def _prepared(self, images: Tensor) -> Tensor:
        return to_model_range(resize_rgb(images.to(self.device), self.size))

    def checked(self, distances: Tensor) -> Tensor:
        """The distances themselves. Raises UserError, with their number, where some aren't finite."""
        if not distances.isfinite().all():
            raise UserError(
                f"evaluate.lpips_weights: {self.id} gives NaN or infinite distances for {int((~distances.isfinite()).sum())} of "
                f"{distances.numel()} pairs; weights that give finite ones are right"
            )
        return distances


class Embedded:
    """Images with their embeddings, of which the first that are asked for are kept (KEPT_BYTES), the others computed each time."""

    def __init__(self, perceptual: PerceptualDistance, images: Tensor) -> None:
        self.perceptual = perceptual
        self.images = images
        self._kept: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.images)

    def distances(self, other: "Embedded", rows: Tensor, columns: Tensor) -> Tensor:
        """LPIPS of all pairs of its images of the indices `rows` [n] and the other's of `columns` [m], [n, m] float32 on the CPU.

        Raises UserError where a distance isn't finite.
        """
        if len(rows) > len(columns):
            return other.distances(self, columns, rows).T
        at_once, blocks = self.perceptual.batch_images, []
        for held_rows in rows.split(HELD_IMAGES):
            held = [self._embeddings(part) for part in held_rows.split(at_once)]
            passing = (other._embeddings(part) for part in columns.split(at_once))
            blocks.append(torch.cat([torch.cat([squared_distances(block, part) for block in held]) for part in passing], 1))
        return self._checked(torch.cat(blocks))

    def within(self, rows: Tensor) -> Tensor:
        """LPIPS of all pairs of its images of the indices `rows` [n], [n, n] float32 on the CPU; each pair is computed once.

        Raises UserError where a distance isn't finite.
        """
        at_once, n = self.perceptual.batch_images, len(rows)
        found = torch.zeros(n, n)
        for top in range(0, n, HELD_IMAGES):
            held = {left: self._embeddings(rows[left : left + at_once]) for left in range(top, min(top + HELD_IMAGES, n), at_once)}
            for left in range(top, n, at_once):
                part = held[left] if left in held else self._embeddings(rows[left : left + at_once])
                for above, block in held.items():
                    if above <= left:
                        found[above : above + len(block), left : left + len(part)] = squared_distances(block, part)
        return self._checked(found.triu(1) + found.triu(1).T)

    def _embeddings(self, rows: Tensor) -> Tensor:
        """[n, D], on the device, of the images of these indices."""
        missing = [row for row in rows.tolist() if row not in self._kept]
        if not missing:
            return torch.stack([self._kept[row] for row in rows.tolist()])
        parts = in_parts(self.perceptual.embedding, self.images[missing], self.perceptual.batch_images)
        computed = parts[0] if len(parts) == 1 else torch.cat(parts)
        found = self._kept | dict(zip(missing, computed, strict=True))
        room = _room_bytes(computed.device) // (computed[0].numel() * computed.element_size()) - len(self._kept)
        self._kept |= {row: found[row].clone() for row in missing[: max(0, room)]}
        return computed if len(missing) == len(rows) else torch.stack([found[row] for row in rows.tolist()])

    def _checked(self, distances: Tensor) -> Tensor:
        return self.perceptual.checked(distances)


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """|a_i - b_j|^2 [n, m] float32 on the CPU, from a [n, D] and b [m, D] on one device."""
    products = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    norms = [torch.zeros(len(rows), dtype=torch.float64, device=a.device) for rows in (a, b)]
    for x, y in zip(a.split(NUMBERS_AT_ONCE, 1), b.split(NUMBERS_AT_ONCE, 1), strict=True):
        products += x @ y.T
        for norm, part in zip(norms, (x, y), strict=True):
            norm += part.square().sum(1)
    sums = norms[0][:, None] + norms[1]
    distances = (sums - 2 * products).cpu()
    for i, j in (distances < NEAR * sums.cpu()).nonzero().tolist():
        distances[i, j] = float((a[i] - b[j]).square().sum())
    return distances.float()


def load_perceptual(
    *, device: str | torch.device, weights: str | None = None, network: Network = "vgg", size: int = 256
) -> PerceptualDistance:
    """LPIPS on `device`; `weights` is a local file of torchvision's network, read instead of a download.

    torchmetrics contains the linear heads; only the trunk needs weights. Raises UserError where they can't be loaded.
    """
    published = TRUNKS[network]
    trunk = find_weights(published, weights)
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    whole = _NoTrainLpips(pretrained=True, net=network, pnet_rand=True)
    _fill_trunk(whole.net, trunk, published)
    return PerceptualDistance(whole.to(device), trunk.hash, torch.device(device), trunk=network, size=size)


def _fill_trunk(slices: nn.Module, weights: Weights, published: Published) -> None:
    """Fill LPIPS's slices from torchvision's `features.<layer>.<...>`: slice1.0.weight (or slices.0.0.weight) is features.0.weight."""
    names = {name: "features." + name.removeprefix("slices.").split(".", 1)[1] for name in slices.state_dict()}
    missing = [source for source in names.values() if source not in weights.tensors]
    if missing:
        raise UserError(f"{weights.place}: {missing[0]} is missing; the weights of {published.network} ({published.url}) are right")
    try:
        slices.load_state_dict({name: weights.tensors[source] for name, source in names.items()})
    except RuntimeError as error:  # load_state_dict's, on shapes
        raise UserError(f"{weights.place}: the shapes are not those of {published.network}; {published.url} is right") from error


def _room_bytes(device: torch.device) -> int:
    """For embeddings that are kept, in all."""
    if device.type != "cuda":
        return KEPT_BYTES
    return min(KEPT_BYTES, torch.cuda.mem_get_info(device)[0] // 4)
