import numpy as np
import pytest
import torch
from torch import Tensor

from fewshot_ray.methods.draw import Draw, SelectedNoise, frozen, mean_square
from fewshot_ray.methods.phase import Batch
from fewshot_ray.methods.randomness import Randomness, derived_seed
from tests.tiny_diffusion import PREDICTION_TYPES, Calls, batch, draw, images, normal, tiny_backbone, tiny_unet


def test_mean_square_against_numpy() -> None:
    """Oracle: NumPy float64, over C, H, W, an image at a time; bfloat16 differences are squared in float32."""
    difference = normal(3, channels=2)
    np.testing.assert_allclose(mean_square(difference), (difference.double().numpy() ** 2).mean(axis=(1, 2, 3)), rtol=1e-6)
    assert mean_square(difference.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_what_follows_from_a_draw(prediction_type: str) -> None:
    """Oracle: the definitions, put together by hand from x_0, t and eps, and the network called directly."""
    backbone = tiny_backbone(prediction_type)
    it = draw(backbone)
    assert it.t.shape == (4,)
    assert it.x_t.shape == it.eps.shape == it.target.shape == (4, 1, 8, 8)
    torch.testing.assert_close(it.x_t, backbone.schedule.add_noise(it.x_0, it.eps, it.t))
    torch.testing.assert_close(it.prediction, backbone.network(it.x_t, it.t).sample)
    torch.testing.assert_close(it.target, backbone.target(it.x_0, it.eps, it.t))
    torch.testing.assert_close(it.x_0_hat, backbone.to_x_0(it.prediction, it.x_t, it.t))
    torch.testing.assert_close(it.predict_eps(it.x_t, it.t), backbone.to_eps(it.prediction, it.x_t, it.t))


def test_one_forward_pass_however_often_it_is_asked() -> None:
    """Oracle: a counting network."""
    backbone = tiny_backbone()
    network = Calls(backbone.network)
    it = draw(backbone, network=network)
    assert network.count == 0
    assert it.prediction is it.prediction
    assert it.x_0_hat is it.x_0_hat
    assert network.count == 1


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_selector_replaces_the_noise_and_shifts_the_target(prediction_type: str) -> None:
    """Oracle: eps* and the shift chosen by hand: the target, read back as noise at x_t*, is eps* + shift."""
    backbone, chosen, shift = tiny_backbone(prediction_type), normal(4, 8), 0.1 * normal(4, 9)

    def selector(x_0: Tensor, t: Tensor, eps: Tensor, predict_eps: object) -> SelectedNoise:
        return SelectedNoise(chosen, shift)

    it = draw(backbone, selector)
    assert it.eps is chosen
    torch.testing.assert_close(backbone.to_eps(it.target, it.x_t, it.t), chosen + shift, atol=2e-3, rtol=2e-3)


def test_parts_of_a_batch_get_their_part_of_its_noise() -> None:
    """Oracle: the whole batch in one draw: micro-batches and workers, in any order, see the same t, eps and further noise."""
    backbone, whole = tiny_backbone(), batch(6, step=3)
    everything = Draw(backbone, backbone.network, whole, Randomness(7), None)
    for rows in ([0, 1], [2, 5], [4, 3]):
        part = Batch(whole.x_0[rows], rows, 6, 3)
        it = Draw(backbone, backbone.network, part, Randomness(7), None)
        assert torch.equal(it.t, everything.t[rows])
        assert torch.equal(it.eps, everything.eps[rows])
        assert torch.equal(it.normal("more"), everything.normal("more")[rows])


def test_randomness_depends_on_seed_step_and_purpose_alone() -> None:
    """Oracle: repetition in another order and another global random state."""
    first = Randomness(1)
    numbers = {step: first.normal(step, "eps", (3, 2)) for step in (0, 1, 2)}
    torch.manual_seed(5)
    again = Randomness(1)
    assert all(torch.equal(again.normal(step, "eps", (3, 2)), numbers[step]) for step in (2, 0, 1))
    assert not torch.equal(numbers[0], numbers[1])
    assert not torch.equal(again.normal(0, "z", (3, 2)), numbers[0])
    assert not torch.equal(Randomness(2).normal(0, "eps", (3, 2)), numbers[0])
    assert derived_seed(1, 2, "x") == derived_seed(1, 2, "x") < 2**63
    assert derived_seed(1, 23) != derived_seed(12, 3)


def test_every_timestep_is_drawn_alike() -> None:
    """Oracle: a uniform integer in [0, T): both ends are met, the mean is T / 2 within four standard errors."""
    t = Randomness(0).integers(0, "t", 10, 4000)
    assert (int(t.min()), int(t.max())) == (0, 9)
    assert abs(t.double().mean() - 4.5) < 4 * np.sqrt(99 / 12 / 4000)


def test_frozen() -> None:
    """Oracle: PyTorch's flags."""
    network = frozen(tiny_unet().train())
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_images_in_range() -> None:
    """Oracle: the toy images are in [-1, 1], as a draw's x_0 is."""
    assert images(3).abs().max() <= 1
