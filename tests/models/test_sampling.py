import pytest
import torch
from torch import Tensor

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.sampling import Sampler, sample
from tests.tiny_diffusion import PREDICTION_TYPES, Formula, images, normal, tiny_backbone

SAMPLERS: tuple[Sampler, ...] = ("ddim", "dpm++")


def perfect_denoiser(backbone: Backbone, image: Tensor) -> Formula:
    """The exact network for a data set of one image: its eps is (x_t - sqrt(alpha_bar) image) / sqrt(1 - alpha_bar)."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        alpha_bar = backbone.schedule.alpha_bar(t)
        eps = (x_t - alpha_bar.sqrt() * image) / (1 - alpha_bar).sqrt()
        return backbone.target(image.expand_as(x_t), eps, t)

    return Formula(predict)


@pytest.mark.parametrize("steps", [10, 50])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_perfect_denoiser_gives_back_its_image(sampler: Sampler, prediction_type: str, steps: int) -> None:
    """Oracle: a data set of one image has a closed-form denoiser, and every sample of it is that image."""
    backbone, image = tiny_backbone(prediction_type), images(1, 8)
    result = sample(backbone, perfect_denoiser(backbone, image), normal(3), sampler=sampler, steps=steps)
    assert result.dtype == torch.uint8
    assert result.shape == (3, 1, 8, 8)
    assert (result.int() - from_model_range(image).int()).abs().max() <= 1


def ddim_by_hand(backbone: Backbone, noise: Tensor, steps: int) -> Tensor:
    """Song et al. 2021, eta 0, in float64: x_0_hat clipped, eps recomputed from it, one step after the other."""
    alpha_bar = backbone.schedule.alphas_cumprod.double()
    stride = 1000 // steps
    x_t = noise.double()
    for t in range(stride * (steps - 1), -1, -stride):
        eps = backbone.network(x_t.float(), torch.full((len(x_t),), t)).sample.double()
        x_0 = ((x_t - (1 - alpha_bar[t]).sqrt() * eps) / alpha_bar[t].sqrt()).clamp(-1, 1)
        eps = (x_t - alpha_bar[t].sqrt() * x_0) / (1 - alpha_bar[t]).sqrt()
        before = alpha_bar[t - stride] if t >= stride else torch.tensor(1.0).double()
        x_t = before.sqrt() * x_0 + (1 - before).sqrt() * eps
    return x_t


@torch.no_grad()
def test_ddim_against_a_second_version() -> None:
    """Oracle: DDIM with eps recomputed from the clipped x_0, written out in float64."""
    backbone, noise = tiny_backbone(), normal(4)
    expected = from_model_range(ddim_by_hand(backbone, noise, 20).float())
    result = sample(backbone, backbone.network, noise, sampler="ddim", steps=20)
    assert (result.int() - expected.int()).abs().max() <= 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_noise_alone_decides(sampler: Sampler) -> None:
    """Oracle: repetition: run again, in other batches, in another random state, or from training mode, the images are the same."""
    backbone, noise = tiny_backbone(), normal(5)
    first = sample(backbone, backbone.network, noise, sampler=sampler, steps=7)
    torch.manual_seed(99)
    backbone.network.train()
    again = sample(backbone, backbone.network, noise, sampler=sampler, steps=7)
    assert backbone.network.training
    assert torch.equal(first, again)
    parts = sample(backbone, backbone.network, noise, sampler=sampler, steps=7, batch_images=2)
    assert (first.int() - parts.int()).abs().max() <= 1
    assert not torch.equal(first, sample(backbone, backbone.network, normal(5, 9), sampler=sampler, steps=7))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_noise_no_images(sampler: Sampler) -> None:
    """Oracle: a worker that owns none of the samples gets an empty tensor."""
    backbone = tiny_backbone()
    assert sample(backbone, backbone.network, normal(0), sampler=sampler, steps=2).shape == (0, 1, 8, 8)


def test_more_steps_than_timesteps_are_refused() -> None:
    """Oracle: the rule for messages: one line, the field, the value, what would be right."""
    backbone = tiny_backbone(num_train_timesteps=10)
    with pytest.raises(UserError, match=r"^evaluate\.sampler_steps: 11 given, .* 10 timesteps; .*right$"):
        sample(backbone, backbone.network, normal(1), sampler="ddim", steps=11)
    assert sample(backbone, backbone.network, normal(1), sampler="ddim", steps=10).shape == (1, 1, 8, 8)
