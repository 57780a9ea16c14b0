"""The regularisers that MixDL is compared with, each against its equation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.methods.cdc import Cdc, CdcConfig, cdc_part
from fewshot_ray.methods.distance_gan import DistanceGanConfig, distance_gan, distance_gan_part
from fewshot_ray.methods.ewc import Ewc, EwcConfig, ewc_part, fisher_information
from fewshot_ray.methods.freezed import FreezeDConfig, freezed_part
from fewshot_ray.methods.gan import GanPart
from fewshot_ray.methods.grouped import similarities
from fewshot_ray.methods.msgan import MsGanConfig, ms_gan, ms_gan_part
from fewshot_ray.methods.ndiv import NDivConfig, n_div, n_div_part
from fewshot_ray.models.gan import Gan
from tests.methods.test_mixdl import cosine, kl, members, softmax
from tests.tiny_gan import GANS, gan_draw, method_of, play_of, tiny_gan, total


def flat(x: Tensor) -> np.ndarray:
    result: np.ndarray = x.detach().flatten(1).double().numpy()
    return result


def pairs(x: np.ndarray, index: int) -> np.ndarray:
    """Distances of a point to the others of its group of four of eight."""
    return np.array([np.linalg.norm(x[index] - x[other]) for other in members(index, 8, 4) if other != index])


def test_n_div_against_numpy() -> None:
    """Oracle: relu(a D^z - D^x) in NumPy float64, row by row, and its mean over the others."""
    play = play_of(method_of(tiny_gan("stylegan2"), style_mixing=0.0))
    config = NDivConfig(a=0.9, weight=3.0)
    objective = n_div(config, play)
    x, z = flat(play.fakes.image), flat(play.z)
    rows = [(pairs(z, i) / pairs(z, i).sum(), pairs(x, i) / pairs(x, i).sum()) for i in range(8)]
    expected = [np.maximum(0, 0.9 * d_z - d_x).mean() for d_z, d_x in rows]
    np.testing.assert_allclose(objective.per_sample["n_div"].detach(), expected, rtol=1e-4, atol=1e-7)
    assert objective.weight == {"n_div": 3.0}


def test_ms_gan_against_numpy() -> None:
    """Oracle: 1 / (|x_1 - x_2| / |z_1 - z_2| + 1e-5) of images 0 and 4, 1 and 5, ... of eight."""
    play = play_of(method_of(tiny_gan("stylegan2"), style_mixing=0.0))
    loss = ms_gan(MsGanConfig(), play).per_sample["mode_seeking"]
    x, z = flat(play.fakes.image), flat(play.z)
    expected = [1 / (np.abs(x[i] - x[i + 4]).mean() / np.abs(z[i] - z[i + 4]).mean() + 1e-5) for i in range(4)]
    np.testing.assert_allclose(loss.detach(), expected * 2, rtol=1e-4)


def test_distance_gan_against_numpy() -> None:
    """Oracle: |standardised d_z - standardised d_x| in NumPy float64; 0 where the images are a scaled copy of the latents."""
    play = play_of(method_of(tiny_gan("stylegan2"), style_mixing=0.0))
    loss = distance_gan(DistanceGanConfig(), play).per_sample["distance_gan"]
    x, z = flat(play.fakes.image), flat(play.z)
    expected = []
    for index in range(8):
        group = members(index, 8, 4)
        both = []
        for points in (z, x):
            all_ = np.array([pairs(points, member) for member in group])
            both.append((pairs(points, index) - all_.mean()) / all_.std())
        expected.append(np.abs(both[0] - both[1]).mean())
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-3)
    play.__dict__["fakes"] = play.fakes._replace(image=3 * play.z[:, :, None, None])
    assert float(distance_gan(DistanceGanConfig(), play).per_sample["distance_gan"].max()) < 1e-5


@pytest.mark.parametrize("name", GANS)
def test_cdc_against_numpy(name: str) -> None:
    """Oracle: KL(q || p) of the similarities with the group's others, in both generators, NumPy float64; 0 before anything is trained."""
    gan, source = tiny_gan(name), tiny_gan(name, seed=1)
    for one in (gan, source):
        one.generator.eval()
    play = play_of(method_of(gan, [cdc_part(CdcConfig(), gan, source)]))
    cdc = Cdc(CdcConfig(), gan, source)
    loss = cdc.generator(play).per_sample["cdc"]
    layer = play.draw.integers("G/cdc-layer", len(cdc.layers))
    with torch.no_grad():
        made = source.make(source.codes(play.z), play.draw.noise("G/fakes"))
        own = gan.make(gan.codes(play.z), play.draw.noise("G/fakes"))
    expected = []
    for i in range(8):
        at, others = cdc.layers[int(layer[i])], [m for m in members(i, 8, 4) if m != i]
        features = [flat(images.features[at]) for images in (made, own)]
        p, q = (softmax(np.array([cosine(f[i], f[m]) for m in others])) for f in features)
        expected.append(kl(q, p))
    np.testing.assert_allclose(loss.detach(), expected, rtol=1e-3, atol=1e-7)
    assert float(Cdc(CdcConfig(), gan, gan).generator(play).per_sample["cdc"].detach().abs().max()) < 1e-6


def test_similarities_near_1_keep_their_digits_under_autocast() -> None:
    """Oracle: the same without autocast."""
    features = 3 + torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        found = similarities(features, features.bfloat16(), 4)
    torch.testing.assert_close(found, similarities(features, features.bfloat16().float(), 4))


@pytest.mark.parametrize("name", GANS)
def test_ewc_is_zero_at_the_source_and_quadratic_away(name: str) -> None:
    """Oracle: by hand: moving one weight by h costs F_i h^2; the Fisher information is a mean of squares, so none is negative."""
    gan, source = tiny_gan(name), tiny_gan(name)
    gan.generator.eval()
    fisher = fisher_information(gan, 4, seed=0)
    assert all(bool((information >= 0).all()) for information in fisher.values())
    ewc, play = Ewc(EwcConfig(), gan, source, fisher), play_of(method_of(gan))
    assert float(ewc.generator(play).per_sample["ewc"].detach().sum()) == 0
    name_, information = max(fisher.items(), key=lambda item: float(item[1].max()))
    place = np.unravel_index(int(information.argmax()), information.shape)
    with torch.no_grad():
        dict(gan.generator.named_parameters())[name_][place] += 0.5
    torch.testing.assert_close(ewc.generator(play).per_sample["ewc"].detach(), (information[place] * 0.25).expand(8))


def test_the_fisher_information_against_one_image_at_a_time() -> None:
    """Oracle: the square of autograd's gradient of -log D(G(z)) for the only latent that was drawn."""
    gan = tiny_gan("stylegan2")
    z = torch.randn((1, 16), generator=torch.Generator().manual_seed(5))
    loss = torch.nn.functional.softplus(-gan.view(gan.make(gan.codes(z)).image).logits).mean()
    gradient = torch.autograd.grad(loss, gan.generator.conv1.conv.weight)[0]
    torch.testing.assert_close(fisher_information(gan, 1, seed=5)["conv1.conv.weight"], gradient.square())


@pytest.mark.parametrize("name", GANS)
def test_freezed_holds_the_first_blocks(name: str) -> None:
    """Oracle: names: the blocks next to the image aren't among the parameters of D's phase, everything else is."""
    gan = tiny_gan(name)
    method = method_of(gan, [freezed_part(FreezeDConfig(layers=2), gan)])
    trained = {id(parameter) for parameter in method.phases()[0].parameters}
    held = {key for key, parameter in gan.discriminator.named_parameters() if id(parameter) not in trained}
    first = {"stylegan2": ("convs.0.", "convs.1."), "fastgan": ("first.", "downs.32.")}[name]
    assert held == {key for key, _ in gan.discriminator.named_parameters() if key.startswith(first)}


def every_part(gan: Gan, source: Gan) -> dict[str, GanPart]:
    return {
        "n_div": n_div_part(NDivConfig()),
        "ms_gan": ms_gan_part(MsGanConfig()),
        "distance_gan": distance_gan_part(DistanceGanConfig()),
        "cdc": cdc_part(CdcConfig(), gan, source),
        "ewc": ewc_part(EwcConfig(), gan, source, fisher_information(source, 2, seed=0)),
    }


@pytest.mark.parametrize("gan_name", GANS)
@pytest.mark.parametrize("name", ["n_div", "ms_gan", "distance_gan", "cdc", "ewc"])
def test_each_is_differentiable_and_shared_by_workers(gan_name: str, name: str) -> None:
    """Oracle: autograd gives the generator a finite gradient; and a worker's half of a batch has the whole's losses."""
    gan, source = tiny_gan(gan_name), tiny_gan(gan_name, seed=1)
    for module in (gan.generator, gan.discriminator, source.generator, source.discriminator):
        module.eval()
    method = method_of(gan, [every_part(gan, source)[name]])
    objective = method.generator_loss(gan_draw(method))
    gradients = torch.autograd.grad(total(objective), list(gan.generator.parameters()), allow_unused=True)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)
    for rank in (0, 1):
        part = method.generator_loss(gan_draw(method, own=slice(rank, None, 2))).per_sample
        for term, values in objective.per_sample.items():
            torch.testing.assert_close(part[term], values[rank::2], rtol=1e-4, atol=1e-5)
