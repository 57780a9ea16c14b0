"""Latents as the pipelines of diffusers scale them, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from fewshot_ray.data.images import from_model_range, to_model_range
from fewshot_ray.models.autoencoder import ENCODED_IMAGES, Autoencoder, encode_all
from fewshot_ray.models.class_table import with_class_table
from fewshot_ray.models.sampling import sample
from fewshot_ray.models.source import load_backbone
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from tests.tiny_diffusion import images, normal
from tests.tiny_pipelines import AUTOENCODER, WRITERS, seeded


def kl(**changes: object) -> Autoencoder:
    return Autoencoder(seeded(lambda: AutoencoderKL(**{**AUTOENCODER, "latent_channels": 4, **changes})))


@pytest.mark.parametrize("changes", [{}, {"scaling_factor": 0.5, "shift_factor": 0.1}])
def test_latents_are_scaled_as_diffusers_does(changes: dict[str, float]) -> None:
    """Oracle: (z - shift) scale of diffusers' own posterior, and its decoder of z / scale + shift; the parameters are never trained."""
    autoencoder, pictures = kl(**changes), images(2, channels=3, size=16)
    scale, shift = changes.get("scaling_factor", 0.18215), changes.get("shift_factor", 0.0)
    posterior = autoencoder.model.encode(pictures).latent_dist
    encoded = autoencoder.encode(pictures)
    torch.testing.assert_close(encoded.mean, (posterior.mean - shift) * scale)
    assert encoded.std is not None
    torch.testing.assert_close(encoded.std, posterior.std * scale)
    latents = normal(2, channels=4).requires_grad_()
    decoded = autoencoder.decode(latents)
    torch.testing.assert_close(decoded, autoencoder.model.decode(latents / scale + shift).sample)
    decoded.sum().backward()
    assert latents.grad is not None
    assert not any(parameter.requires_grad for parameter in autoencoder.model.parameters())
    assert (autoencoder.channels, autoencoder.factor) == (3, 2)


def test_many_are_encoded_a_few_at_a_time() -> None:
    """Oracle: one by one."""
    autoencoder, pictures = kl(), images(ENCODED_IMAGES + 3, channels=3, size=16)
    together = encode_all(autoencoder, pictures)
    assert together.std is not None
    for index in range(len(pictures)):
        torch.testing.assert_close(together.mean[index], autoencoder.encode(pictures[index : index + 1]).mean[0], atol=1e-5, rtol=1e-4)
    plain = encode_all(None, pictures)
    assert plain.mean is pictures
    assert plain.std is None


def test_the_posterior_is_drawn_anew_in_each_step() -> None:
    """Oracle: mean and std over many steps, of the flipped images' own latents as of the upright; a step's draw is the same again."""
    autoencoder, pictures = kl(), from_model_range(images(2, channels=3, size=16))
    batches = Batches(pictures, 2, seed=0, flip=True, device="cpu", autoencoder=autoencoder)
    upright = encode_all(autoencoder, to_model_range(pictures))
    mirrored = encode_all(autoencoder, to_model_range(pictures).flip(-1))
    assert upright.std is not None
    assert mirrored.std is not None
    z = []
    for step in range(300):
        (batch,) = batches.micro_batches(step, Group.alone(), 2)
        for image, x_0 in zip(batches.indices(step), batch.x_0, strict=True):
            of_both = [(x_0 - one.mean[image]) / one.std[image] for one in (upright, mirrored) if one.std is not None]
            z.append(min(of_both, key=lambda standard: float(standard.square().mean())))
    drawn = torch.stack(z)
    assert abs(float(drawn.mean())) < 0.02
    assert abs(float(drawn.std()) - 1) < 0.02
    again = batches.micro_batches(7, Group.alone(), 2)[0]
    assert torch.equal(again.x_0, batches.micro_batches(7, Group.alone(), 2)[0].x_0)
    apart = torch.cat([part.x_0 for part in batches.micro_batches(7, Group.alone(), 1)])
    assert torch.equal(apart, again.x_0)


def test_guidance(tmp_path: Path) -> None:
    """Oracle: null + s (class - null) by hand; a scale of 1 is the class alone, and guided samples differ from it."""
    WRITERS["dit"](tmp_path)
    source = load_backbone(str(tmp_path))
    source.network, source.class_names = with_class_table(source.network, 2), ("a", "b")  # type: ignore[arg-type]
    for number, parameter in enumerate(source.network.parameters()):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
    x_t, t, labels = normal(2, channels=4), torch.tensor([5, 700]), torch.tensor([0, 1])
    with torch.no_grad():
        of_class = source.predict(source.network, x_t, t, labels)
        of_null = source.predict(source.network, x_t, t, torch.tensor([2, 2]))
        assert (of_class - of_null).abs().max() > 1e-3
        torch.testing.assert_close(source.predict_guided(source.network, x_t, t, labels, 3.0), of_null + 3 * (of_class - of_null))
        assert torch.equal(source.predict_guided(source.network, x_t, t, labels, 1.0), of_class)
    plain, guided = (
        sample(source, source.network, x_t, sampler="ddim", steps=3, labels=labels, guidance_scale=scale) for scale in (1.0, 4.0)
    )
    assert plain.shape == (2, 3, 16, 16)
    assert plain.dtype == torch.uint8
    assert not torch.equal(plain, guided)
