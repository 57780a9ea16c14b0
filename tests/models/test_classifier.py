import pytest
import torch

from fewshot_ray.methods.ant import AntConfig, train_classifier
from fewshot_ray.models.classifier import NoiseAwareClassifier
from tests.tiny_diffusion import normal, tiny_backbone


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (32, 32)), (1, (4, 4)), (3, (9, 17)), (1, (2, 2))])
def test_a_logit_an_image(channels: int, size: tuple[int, int]) -> None:
    """Oracle: shapes; and each image's logit is what it gets alone (no batch statistics)."""
    classifier = NoiseAwareClassifier(channels, size, width=16)
    x_t, t = torch.randn(3, channels, *size), torch.tensor([0, 10, 999])
    with torch.no_grad():
        logits = classifier(x_t, t)
        alone = torch.cat([classifier(x_t[i : i + 1], t[i : i + 1]) for i in range(3)])
    assert logits.shape == (3,)
    torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-4)


def test_it_knows_the_timestep() -> None:
    """Oracle: the definition p_phi(y | x_t, t): the same x_t at another t gives another logit."""
    classifier, x_t = NoiseAwareClassifier(1, (8, 8)), normal(1).expand(2, -1, -1, -1)
    logits = classifier(x_t, torch.tensor([0, 900]))
    assert logits[0] != logits[1]


def test_it_learns_to_tell_two_domains_at_low_noise() -> None:
    """Oracle: domains anyone tells apart (dark, bright): right at t = 50, near even odds at t = 999; deterministic in the seed."""
    schedule = tiny_backbone().schedule
    dark, bright = -0.6 + 0.2 * normal(20, 1), 0.6 + 0.2 * normal(10, 2)
    config = AntConfig(classifier_steps=40, classifier_batch=32, classifier_lr=1e-3)
    before = torch.random.get_rng_state()
    classifier = train_classifier(dark, bright, schedule, config, seed=3)
    assert torch.equal(before, torch.random.get_rng_state())
    t = torch.full((10,), 50)
    with torch.no_grad():
        assert (classifier(schedule.add_noise(bright, normal(10, 3), t), t) > 0).float().mean() >= 0.9
        assert (classifier(schedule.add_noise(dark[:10], normal(10, 4), t), t) < 0).float().mean() >= 0.9
        late = classifier(schedule.add_noise(bright, normal(10, 3), t + 949), t + 949).sigmoid()
    assert (late - 0.5).abs().mean() < 0.35
    few = config.model_copy(update={"classifier_steps": 2})
    first, again, other = (train_classifier(dark, bright, schedule, few, seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)
