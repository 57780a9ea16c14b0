from __future__ import annotations

import pytest
import torch

from fewshot_ray.models.stylegan2 import StyleGan2Discriminator, StyleGan2Generator, stddev_map, widths
from tests.models import stylegan2_reference as reference
from tests.tiny_gan import tiny_stylegan2


def livened(module: torch.nn.Module) -> torch.nn.Module:
    """With noise weights and biases that aren't 0, so that nothing is compared at its start's value."""
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        if parameter.ndim == 1 or parameter.numel() < 8:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return module.double()


@pytest.mark.parametrize("resolution", [8, 32, 64])
def test_generator_against_the_published_formulation(resolution: int) -> None:
    """Oracle: weights modulated one image at a time, grouped convolutions and upfirdn, float64, in the common layout's names."""
    gan = livened(tiny_stylegan2(resolution, channels=3).generator)
    z = torch.randn((3, 16), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(gan(z), reference.generate(gan.state_dict(), z), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("resolution", "batch"), [(8, 8), (32, 4), (64, 2)])
def test_discriminator_against_the_published_formulation(resolution: int, batch: int) -> None:
    """Oracle: as above, with the groups of the common re-implementation: images i, i + 2, i + 4, i + 6 of a batch of 8."""
    network = livened(tiny_stylegan2(resolution, channels=3).discriminator)
    images = torch.randn((batch, 3, resolution, resolution), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network(images), reference.judge(network.state_dict(), images), rtol=1e-6, atol=1e-8)


def test_widths_are_the_published_ones() -> None:
    """Oracle: the table of the common re-implementation with a channel multiplier of 2 (configuration F) and of 1."""
    full = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64, 1024: 32}
    assert widths(1024, 32768, 512) == full
    assert widths(256, 16384, 512) == {4: 512, 8: 512, 16: 512, 32: 512, 64: 256, 128: 128, 256: 64}


@pytest.mark.parametrize(("resolution", "generator", "discriminator"), [(256, 30_034_338, 28_864_129), (1024, 30_370_060, 29_012_513)])
def test_parameter_counts_are_the_published_ones(resolution: int, generator: int, discriminator: int) -> None:
    """Oracle: the counts that the authors print for configuration F (trained numbers; noise images are not among them)."""
    with torch.device("meta"):
        networks = StyleGan2Generator(resolution), StyleGan2Discriminator(resolution)
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert counts == [generator, discriminator]


@pytest.mark.parametrize("resolution", [4, 48, 2048])
def test_other_resolutions_are_refused(resolution: int) -> None:
    """Oracle: the stated rule."""
    for kind in (StyleGan2Generator, StyleGan2Discriminator):
        with pytest.raises(ValueError, match=f"resolution is {resolution}; a power of two from 8 to 1024 is right"):
            kind(resolution)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_stddev_groups_are_whole_on_every_worker(workers: int) -> None:
    """Oracle: the map of the whole batch: a worker's `rank::workers` images have the same numbers by themselves."""
    x = torch.randn((16, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    whole = stddev_map(x, 4)
    for rank in range(workers):
        torch.testing.assert_close(stddev_map(x[rank::workers], 4), whole[rank::workers])


def test_crossover_takes_later_styles_from_the_other_latent() -> None:
    """Oracle: by layer: the first `crossover` styles are w, the rest the other's."""
    generator = tiny_stylegan2().generator
    w, other = torch.zeros(2, 16), torch.ones(2, 16)
    assert generator.style_count == 6
    assert generator.styles(w, other, 2)[:, :, 0].tolist() == [[0, 0, 1, 1, 1, 1]] * 2
    assert torch.equal(generator.styles(w), torch.zeros(2, 6, 16))


def test_features_have_their_layers_names_and_sizes() -> None:
    """Oracle: two layers a resolution from 8 up, one at 4; the image depends on the last."""
    generator = tiny_stylegan2().generator
    image, features = generator.synthesis(generator.styles(torch.randn(2, 16)))
    assert {name: feature.shape[-1] for name, feature in features.items()} == {
        "b4.conv1": 4,
        "b8.conv0": 8,
        "b8.conv1": 8,
        "b16.conv0": 16,
        "b16.conv1": 16,
    }
    assert list(features) == generator.layer_names
    assert image.shape == (2, 1, 16, 16)
