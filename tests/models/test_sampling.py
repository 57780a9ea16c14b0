import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from fewshot_ray.data.images import from_model_range
from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.sampling import Sampler, denoise, sample, trailing_timesteps
from tests.tiny_diffusion import PREDICTION_TYPES, Formula, images, normal, tiny_backbone

FloatArray = npt.NDArray[np.float64]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "dpm++")


def perfect_denoiser(backbone: Backbone, image: Tensor) -> Formula:
    """The exact network for a data set of one image: its eps is (x_t - sqrt(alpha_bar) image) / sqrt(1 - alpha_bar)."""

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        eps = backbone.schedule.eps(image, x_t, t)
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


def by_formula(x_t: Tensor, t: Tensor) -> Tensor:
    """A network that says something else of every timestep, and is easily written again in NumPy."""
    return 0.9 * torch.tanh(x_t) + 0.2 * torch.cos(t / 2.0).view(-1, 1, 1, 1)


def ddim_by_hand(backbone: Backbone, noise: Tensor, timesteps: list[int]) -> FloatArray:
    """Song et al. 2021, Eq. 12, sigma = 0, in NumPy float64: from each timestep of the list to the next, the last to x_0 itself."""
    config = backbone.scheduler.config
    alpha_bar = np.cumprod(1 - np.linspace(config.beta_start, config.beta_end, config.num_train_timesteps))
    x_t: FloatArray = noise.double().numpy()
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, s = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
        prediction = 0.9 * np.tanh(x_t) + 0.2 * np.cos(t / 2)
        x_0 = {"epsilon": (x_t - s * prediction) / a, "sample": prediction, "v_prediction": a * x_t - s * prediction}[
            backbone.prediction_type
        ]
        if config.thresholding:
            bound = np.quantile(np.abs(x_0), config.dynamic_thresholding_ratio, axis=(1, 2, 3), keepdims=True)
            bound = bound.clip(1, config.sample_max_value)
            x_0 = x_0.clip(-bound, bound) / bound
        elif config.clip_sample:
            x_0 = x_0.clip(-config.clip_sample_range, config.clip_sample_range)
        before = 1.0 if following is None else alpha_bar[following]
        x_t = np.sqrt(before) * x_0 + np.sqrt(1 - before) * (x_t - a * x_0) / s
    return x_t


def rounded_trailing(timesteps: int, steps: int) -> list[int]:
    """T (steps - i) / steps, rounded as fractions, halves upwards, less 1."""
    return [math.floor(Fraction(timesteps * (steps - i), steps) + Fraction(1, 2)) - 1 for i in range(steps)]


@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_ddim_along_the_list_of_timesteps(prediction_type: str, steps: int) -> None:
    """Oracle: DDIM over the list in NumPy float64, for every step count of T = 13, most of which don't divide it."""
    backbone = tiny_backbone(prediction_type, num_train_timesteps=13, beta_start=0.02, beta_end=0.5)
    expected = ddim_by_hand(backbone, normal(4), rounded_trailing(13, steps))
    network = Formula(by_formula)
    x_0 = denoise(backbone, lambda x_t, t: network(x_t, t).sample, normal(4), sampler="ddim", steps=steps)
    np.testing.assert_allclose(x_0, expected, rtol=2e-4, atol=2e-4)
    images = sample(backbone, network, normal(4), sampler="ddim", steps=steps)
    assert (images.int() - from_model_range(torch.from_numpy(expected)).int()).abs().max() <= 1


@pytest.mark.parametrize(
    "bounds",
    [
        {"clip_sample": False},
        {"clip_sample_range": 0.7},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.5},
    ],
)
def test_x_0_is_bounded_as_the_scheduler_says(bounds: dict[str, object]) -> None:
    """Oracle: clipping and dynamic thresholding (Saharia et al. 2022) in NumPy float64."""
    backbone = tiny_backbone(num_train_timesteps=13, beta_start=0.02, beta_end=0.5, **bounds)
    expected = ddim_by_hand(backbone, normal(4), rounded_trailing(13, 5))
    x_0 = denoise(backbone, by_formula, normal(4), sampler="ddim", steps=5)
    np.testing.assert_allclose(x_0, expected, rtol=2e-4, atol=2e-4)
    plain = ddim_by_hand(tiny_backbone(num_train_timesteps=13, beta_start=0.02, beta_end=0.5), normal(4), rounded_trailing(13, 5))
    assert np.abs(expected - plain).max() > 0.05


@pytest.mark.parametrize("timesteps", [1, 7, 30, 256, 1000])
def test_the_list_of_timesteps(timesteps: int) -> None:
    """Oracle: exact fractions; from T - 1 strictly down to 0 or above, as many as there are steps, for every step count."""
    for steps in range(1, timesteps + 1):
        found = trailing_timesteps(timesteps, steps)
        assert found == rounded_trailing(timesteps, steps), steps
        assert len(found) == steps
        assert found[0] == timesteps - 1
        assert found[-1] >= 0
        assert all(later < earlier for earlier, later in pairwise(found)), steps


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_network_is_asked_at_the_timesteps_of_the_list(sampler: Sampler) -> None:
    """Oracle: exact fractions; where floating point gives 1,000 / 347 steps a timestep of -1, and halves to the even number."""
    for timesteps, steps in ((1000, 347), (1000, 16), (13, 13), (30, 20)):
        asked: list[int] = []

        def predict(x_t: Tensor, t: Tensor, asked: list[int] = asked) -> Tensor:
            asked.append(int(t[0]))
            return torch.zeros_like(x_t)

        assert torch.isfinite(denoise(tiny_backbone(num_train_timesteps=timesteps), predict, normal(1), sampler=sampler, steps=steps)).all()
        assert asked == rounded_trailing(timesteps, steps)


@pytest.mark.parametrize("steps", [1, 4, 5, 13])
def test_dpm_solver_against_a_second_version(steps: int) -> None:
    """Oracle: DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2) in NumPy float64, its last step of first order to alpha_bar = 1."""
    backbone = tiny_backbone(num_train_timesteps=13, beta_start=0.02, beta_end=0.5)
    alpha_bar = np.cumprod(1 - np.linspace(0.02, 0.5, 13))
    timesteps, x_t, earlier, step_before = rounded_trailing(13, steps), normal(4).double().numpy(), None, 0.0
    for t, following in zip(timesteps, [*timesteps[1:], None], strict=True):
        a, s = np.sqrt(alpha_bar[t]), np.sqrt(1 - alpha_bar[t])
        x_0 = (x_t - s * (0.9 * np.tanh(x_t) + 0.2 * np.cos(t / 2))) / a
        if following is None:
            x_t = x_0
            break
        a_next, s_next = np.sqrt(alpha_bar[following]), np.sqrt(1 - alpha_bar[following])
        step = np.log(a_next / s_next) - np.log(a / s)
        slope = 0.0 if earlier is None else (x_0 - earlier) * step / (2 * step_before)
        x_t = s_next / s * x_t - a_next * np.expm1(-step) * (x_0 + slope)
        earlier, step_before = x_0, step
    found = denoise(backbone, by_formula, normal(4), sampler="dpm++", steps=steps)
    np.testing.assert_allclose(found, x_t, rtol=1e-3, atol=1e-3)


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
