"""FastGAN's networks: what goes in and out at every size, the excitation's wiring, normalisation, the redrawing decoders."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewshot_ray.models.fastgan import FastGanDiscriminator, FastGanGenerator, resized, small_size

SIZES = (64, 128, 256, 512, 1024)


def noise_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def generator() -> FastGanGenerator:
    torch.manual_seed(0)
    return FastGanGenerator(64, 1, latent_dim=8, width=2).eval()


@pytest.mark.parametrize("size", SIZES)
def test_shapes(size: int) -> None:
    """Oracle: by hand: an image, a small one of half the side and 128 at most, a map a level, two times 5x5 patches."""
    torch.manual_seed(0)
    generator = FastGanGenerator(size, 3, latent_dim=8, width=8).eval()
    discriminator = FastGanDiscriminator(size, 3, width=8).eval()
    with torch.no_grad():
        made = generator.synthesis(noise_of(2, 8))
        judged = discriminator(made.image, made.small)
        redrawn = (
            discriminator.decode_last(judged.last),
            discriminator.decode_part(judged.part[..., :8, :8]),
            discriminator.decode_small(judged.small),
        )
    small = min(128, size // 2)
    assert made.image.shape == (2, 3, size, size)
    assert made.small.shape == (2, 3, small, small)
    assert bool((made.image.abs() <= 1).all())
    levels = [2**level for level in range(2, size.bit_length())]
    assert generator.layer_names == list(made.features) == [f"b{level}" for level in levels]
    assert [x.shape[-1] for x in made.features.values()] == levels
    assert generator.noise_shapes == [(1, level, level) for level in (8, 32, 128, 512) if level <= size for _ in range(2)]
    assert judged.logits.shape == (2, 50)
    assert judged.last.shape[-2:] == judged.small.shape[-2:] == (8, 8)
    assert judged.part.shape[-2:] == (16, 16)
    assert discriminator.hidden_dim == judged.last[0].numel()
    assert all(image.shape == (2, 3, small, small) for image in redrawn)


@pytest.mark.parametrize("size", [0, 32, 48, 96, 2048])
def test_other_sizes_are_refused(size: int) -> None:
    """Oracle: what is right stands in the message."""
    for network in (FastGanGenerator, FastGanDiscriminator):
        with pytest.raises(ValueError, match=f"resolution is {size}; a power of two from 64 to 1024 is right"):
            network(size)


def test_a_large_map_is_scaled_by_a_small_one(generator: FastGanGenerator) -> None:
    """Oracle: the excitation in a formula of its own: pooled to 4x4, a 4x4 and a 1x1 convolution, SiLU, sigmoid; 4x4 scales 64x64."""
    z = noise_of(3, 8)
    with torch.no_grad():
        features = generator.synthesis(z).features
        up = generator.ups["64"](features["b32"], [])
        first, _, second = (layer for layer in generator.excitations["64"].main[1:4])
        pooled = F.adaptive_avg_pool2d(features["b4"], 4)
        scale = F.conv2d(F.silu(F.conv2d(pooled, first.weight)), second.weight).sigmoid()
    assert list(generator.excitations) == ["64"]
    assert scale.shape == (3, up.shape[1], 1, 1)
    torch.testing.assert_close(features["b64"], up * scale)


def test_an_image_is_a_function_of_its_latent_and_noise(generator: FastGanGenerator) -> None:
    """Oracle: twice the same; the noise has a weight of zero at first, and changes all maps from 8x8 on once it has another."""
    z, noise = noise_of(2, 8), [noise_of(2, *shape, seed=index) for index, shape in enumerate(generator.noise_shapes)]
    with torch.no_grad():
        assert torch.equal(generator(z), generator(z))
        assert torch.equal(generator(z), generator(z, noise))
        for up in generator.ups.values():
            for own in up.noises or ():
                own.weight.fill_(0.5)
        fixed, drawn = generator.synthesis(z).features, generator.synthesis(z, noise).features
        for up in generator.ups.values():
            for own in up.noises or ():
                own.weight.zero_()
    assert [name for name in fixed if not torch.equal(fixed[name], drawn[name])] == ["b8", "b16", "b32", "b64"]


@pytest.mark.parametrize("network", [FastGanGenerator, FastGanDiscriminator])
def test_convolutions_are_spectrally_normalised(network: type[nn.Module]) -> None:
    """Oracle: singular values: after enough power iterations the largest of every convolution is 1."""
    torch.manual_seed(0)
    built = network(64, 1, width=4).train()
    for _ in range(60):
        _ = [module.weight for module in built.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)]
    convolutions = {name: module for name, module in built.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)}
    assert convolutions
    for name, module in convolutions.items():
        weight = module.weight.transpose(0, 1) if isinstance(module, nn.ConvTranspose2d) else module.weight
        assert float(torch.linalg.matrix_norm(weight.detach().flatten(1), 2)) == pytest.approx(1, abs=0.05), name
        assert module.bias is None, name


def test_the_real_images_own_small_version() -> None:
    """Oracle: an image without one is judged as the same image with its antialiased half."""
    torch.manual_seed(0)
    discriminator, images = FastGanDiscriminator(64, 1, width=4).eval(), noise_of(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(discriminator(images).logits, discriminator(images, resized(images, small_size(64))).logits)
        other = discriminator(images, noise_of(2, 1, 32, 32)).logits
    assert torch.equal(discriminator(images).logits[:, :25], other[:, :25])
    assert not torch.equal(discriminator(images).logits[:, 25:], other[:, 25:])
