"""Train the digits benchmark's feature extractor: fewshot_ray/metrics/embedded/digit_network.safetensors.

    python bench/data/make_digit_network.py [OUT.safetensors]

One thread, seeded, under two minutes. It sees the 1,000 source digits only, never a target picture: random slants, turns,
sizes, shifts and stroke widths, drawn at 64x64 as the target's are, bring the target domain within its reach. The accuracy
on the target's test digits, printed at the end, says how far.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.functional import affine_grid, avg_pool2d, cross_entropy, grid_sample, max_pool2d, mse_loss

from fewshot_ray.data.digits import digits
from fewshot_ray.data.images import to_model_range
from fewshot_ray.metrics.digit_network import FEATURES, WEIGHTS_FILE, DigitNetwork

SEED = 0
EPOCHS = 80
BATCH_IMAGES = 50
LR = 2e-3
WEIGHT_DECAY = 1e-2
LABEL_SMOOTHING = 0.1
RECONSTRUCTION_WEIGHT = 3.0
ENLARGEMENT = 8
MAX_RADIUS_PIXELS = 3


def restyle(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random affine maps and thickening of digits [B, 1, 8, 8] in [0, 1]: an affine map per image, a stroke width per batch."""
    large = images.repeat_interleave(ENLARGEMENT, 2).repeat_interleave(ENLARGEMENT, 3)
    grid = affine_grid(affine_maps(len(images), generator), list(large.shape), align_corners=False)
    slanted = grid_sample(large, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    radius = int(torch.randint(0, MAX_RADIUS_PIXELS + 1, (), generator=generator))
    thick = max_pool2d(slanted, 2 * radius + 1, stride=1, padding=radius)
    return avg_pool2d(thick, ENLARGEMENT)


def affine_maps(count: int, generator: torch.Generator) -> Tensor:
    """[count, 2, 3] for `affine_grid`: shear -.5 to .6 (positive leans the tops to the right), turns of .15 rad, sizes, shifts.

    Shifts reach one pixel of eight, .25 in the grid's units.
    """
    shear = uniform(count, -0.5, 0.6, generator)
    angle = uniform(count, -0.15, 0.15, generator)
    scale_x, scale_y = uniform(count, 0.85, 1.15, generator), uniform(count, 0.85, 1.15, generator)
    shift_x, shift_y = uniform(count, -0.25, 0.25, generator), uniform(count, -0.25, 0.25, generator)
    cos, sin = angle.cos(), angle.sin()
    rows = [
        torch.stack([cos * scale_x, (cos * shear - sin) * scale_y, shift_x], 1),
        torch.stack([sin * scale_x, (sin * shear + cos) * scale_y, shift_y], 1),
    ]
    return torch.stack(rows, 1)


def uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    """[count] from U(low, high)."""
    return low + (high - low) * torch.rand(count, generator=generator)


def train() -> DigitNetwork:
    """Classification, and reconstruction of the image from the features by one linear layer that is thrown away.

    Without the reconstruction a class collapses towards a point, and distances within it, which the measures of diversity
    and of memorisation live on, mean little: 3 to 10 % of real digits then pass for copies, with it 1 to 7 %.
    """
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network, decoder = DigitNetwork(), nn.Linear(FEATURES, 64)
    optimizer = torch.optim.AdamW([*network.parameters(), *decoder.parameters()], lr=LR, weight_decay=WEIGHT_DECAY)
    images, labels = digits("source")
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS * len(images) // BATCH_IMAGES)
    for _ in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(images), generator=generator), BATCH_IMAGES):
            styled = 2 * restyle(images[batch].float() / 255, generator) - 1
            features = network.features(styled)
            classification = cross_entropy(network.head(features), labels[batch], label_smoothing=LABEL_SMOOTHING)
            reconstruction = mse_loss(decoder(features), styled.flatten(1))
            loss = classification + RECONSTRUCTION_WEIGHT * reconstruction
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.no_grad()
def accuracy(network: DigitNetwork, part: str) -> float:
    """Share of the part's digits that the network names rightly."""
    images, labels = digits(part)
    return float((network(to_model_range(images)).argmax(1) == labels).double().mean())


def main(out: Path = WEIGHTS_FILE) -> None:
    """Train, write, print the accuracies."""
    torch.set_num_threads(1)
    network = train()
    out.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), out)
    print(f"{out}: {out.stat().st_size} bytes")
    print(f"accuracy on source digits {accuracy(network, 'source'):.3f}, on target test digits {accuracy(network, 'test'):.3f}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
