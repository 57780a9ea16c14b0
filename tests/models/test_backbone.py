import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from fewshot_ray.errors import UserError
from fewshot_ray.models.backbone import Backbone
from tests.tiny_diffusion import PREDICTION_TYPES, Formula, images, normal, tiny_backbone, tiny_unet

T = torch.tensor([1, 200, 500, 900])


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_stands_for_eps_and_x_0(prediction_type: str) -> None:
    """Oracle: the identity: what the network should say, translated, is the eps and the x_0 that x_t was made of."""
    backbone, x_0, eps = tiny_backbone(prediction_type), images(4), normal(4)
    x_t = backbone.schedule.add_noise(x_0, eps, T)
    target = backbone.target(x_0, eps, T)
    torch.testing.assert_close(backbone.to_eps(target, x_t, T), eps, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(backbone.to_x_0(target, x_t, T), x_0, atol=2e-4, rtol=2e-4)


def test_velocity_against_diffusers() -> None:
    """Oracle: diffusers' `DDIMScheduler.get_velocity`."""
    x_0, eps = images(4), normal(4)
    torch.testing.assert_close(tiny_backbone("v_prediction").target(x_0, eps, T), DDIMScheduler().get_velocity(x_0, eps, T))


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_to_x_0_against_diffusers(prediction_type: str) -> None:
    """Oracle: `DDIMScheduler.step(...).pred_original_sample`, one image and timestep at a time."""
    backbone = tiny_backbone(prediction_type)
    scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
    scheduler.set_timesteps(1000)
    x_t, prediction = normal(4, 1), normal(4, 2)
    expected = torch.cat([scheduler.step(prediction[i : i + 1], t, x_t[i : i + 1]).pred_original_sample for i, t in enumerate(T.tolist())])
    torch.testing.assert_close(backbone.to_x_0(prediction, x_t, T), expected)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_target_slope_against_finite_differences(prediction_type: str) -> None:
    """Oracle: central differences in float64 of the target in eps, x_t held (so x_0 gives way)."""
    backbone = tiny_backbone(prediction_type)
    x_t, eps, step = normal(4, 3).double(), normal(4, 4).double(), 1e-4
    signal, noise_scale = backbone.schedule.signal_scale(T), backbone.schedule.noise_scale(T)

    def target(noise: torch.Tensor) -> torch.Tensor:
        return backbone.target((x_t - noise_scale * noise) / signal, noise, T)

    slope = (target(eps + step) - target(eps - step)) / (2 * step)
    torch.testing.assert_close(backbone.target_slope(T).double().expand_as(slope), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_shifted_target_is_the_target_of_shifted_noise(prediction_type: str) -> None:
    """Oracle: the definition: target + slope * shift, read back as noise, is eps + shift."""
    backbone, x_0, eps, shift = tiny_backbone(prediction_type), images(4), normal(4), 0.1 * normal(4, 7)
    x_t = backbone.schedule.add_noise(x_0, eps, T)
    shifted = backbone.target(x_0, eps, T) + backbone.target_slope(T) * shift
    torch.testing.assert_close(backbone.to_eps(shifted, x_t, T), eps + shift, atol=2e-3, rtol=2e-3)


def test_predict_is_the_networks_output_in_float32() -> None:
    """Oracle: the same UNet called directly; a bfloat16 output comes back as float32."""
    backbone, x_t = tiny_backbone(), normal(4)
    with torch.no_grad():
        assert torch.equal(backbone.predict(backbone.network, x_t, T), backbone.network(x_t, T).sample)
    assert backbone.predict(Formula(lambda x, t: x.bfloat16()), x_t, T).dtype == torch.float32


def test_shapes_and_unknown_prediction_type() -> None:
    """Oracle: the configuration that the network was built with."""
    backbone = tiny_backbone()
    assert (backbone.channels, backbone.size, backbone.device.type) == (1, (8, 8), "cpu")
    assert Backbone(tiny_unet(sample_size=(8, 16)), DDPMScheduler()).size == (8, 16)
    assert backbone.to("cpu") is backbone
    scheduler = DDPMScheduler()
    scheduler.register_to_config(prediction_type="flow")
    with pytest.raises(UserError, match=r"^source\.model: prediction_type 'flow' .*would be right$"):
        Backbone(tiny_unet(), scheduler)
