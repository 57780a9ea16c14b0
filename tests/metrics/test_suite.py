"""The suite: names, values, stamps; every metric of the registry."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.digits import digits
from fewshot_ray.errors import UserError
from fewshot_ray.metrics import METRICS, PerceptualDistance, Suite, check_metrics, load_extractor, needed
from fewshot_ray.metrics.diversity import unit_features
from fewshot_ray.metrics.extractors.inception import InceptionExtractor, InceptionOutputs
from fewshot_ray.metrics.fidelity import frechet_distance, kernel_distance
from fewshot_ray.metrics.memorisation import memorised_share

FEATURE_METRICS = ["fd", "kid", "pairwise_distance", "intra_distance", "memorisation"]


class PixelPerceptual(PerceptualDistance):
    """Stands in for LPIPS, whose weights can't be had here: mean square over pixels."""

    def __init__(self) -> None:
        super().__init__(None, "0" * 12, torch.device("cpu"))

    def embedding(self, images: Tensor) -> Tensor:
        return images.flatten(1).float() / 255 / images[0].numel() ** 0.5

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        return (self.embedding(a) - self.embedding(b)).square().sum(1)


@dataclass
class CountingExtractor:
    """Pixels as features; counts the images it saw."""

    id: str = "pixels"
    weights_hash: str = "0" * 12
    resize: str = "none"
    dimension: int | None = None
    seen_images: int = 0

    def features(self, images: Tensor) -> Tensor:
        self.seen_images += len(images)
        return images.flatten(1).float() / 255


class DigitInception(InceptionExtractor):
    """Stands in for Inception, whose weights can't be had here: pixels, and the digit network's own logits."""

    def __init__(self) -> None:
        super().__init__(nn.Identity(), "0" * 12, torch.device("cpu"))

    def outputs(self, images: Tensor) -> InceptionOutputs:
        digits: Any = load_extractor("digits", device="cpu")
        features = digits.features(images)
        return InceptionOutputs(features, images.flatten(1).float() / 255, digits.network.head(features))


def digit_suite(metrics: list[str]) -> Suite:
    return Suite(
        metrics,
        training=digits("shots").images,
        reference=digits("validation").images,
        extractor=load_extractor("digits", device="cpu"),
        perceptual=PixelPerceptual(),
        networks={"inception": DigitInception(), "dinov2": CountingExtractor(), "clip": CountingExtractor()},
    )


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_what_it_is_asked_for(name: str) -> None:
    """Oracle: the registry; the loss is the trial's own."""
    beside = {"kid": {"kid_stderr"}, "intra_distance": {"occupancy"}, "intra_lpips": {"occupancy_lpips"}}
    beside |= {"memorisation": {"memorisation_ratio"}, "inception_score": {"inception_score_std"}}
    values = digit_suite([name]).compute(digits("test").images[:120], lambda: digits("source").images[:120])
    assert set(values) == ({name} | beside.get(name, set()) if METRICS[name].of_samples else set())
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values())


FOR_REAL_PICTURES = [
    name for name, metric in METRICS.items() if metric.of_samples and name not in ("precision", "alignment", "alignment_lpips")
]
"""Precision is as content with copies, and alignment compares with the source's samples, not with real pictures."""


@pytest.mark.parametrize("name", FOR_REAL_PICTURES)
def test_every_direction_prefers_real_pictures_to_one_repeated(name: str) -> None:
    """Oracle: what the pictures are: 120 real test digits against one shot 120 times, and as the source's samples source digits."""
    suite = digit_suite([name])
    real, copies = (
        suite.compute(images, lambda: digits("source").images[:120])[name]
        for images in (digits("test").images[:120], digits("shots").images[:1].expand(120, -1, -1, -1))
    )
    assert real < copies if METRICS[name].direction == "min" else real > copies


def test_values_are_the_functions_own() -> None:
    """Oracle: the functions tested beside this file, on features taken directly."""
    suite = digit_suite(FEATURE_METRICS)
    samples = digits("test").images[:100]
    values = suite.compute(samples)
    features = load_extractor("digits", device="cpu").features
    generated, training, reference = features(samples), features(digits("shots").images), features(digits("validation").images)
    assert values["fd"] == frechet_distance(generated, reference)
    assert (values["kid"], values["kid_stderr"]) == kernel_distance(generated, reference)
    assert values["memorisation"] == memorised_share(generated, training, reference).share
    pairs = torch.pdist(unit_features(generated))
    assert values["pairwise_distance"] == pytest.approx(float(pairs.mean()), rel=1e-9)
    assert 0 < values["intra_distance"] < values["pairwise_distance"]
    assert values["occupancy"] == 1


def test_cached_features_of_real_images_spare_the_extractor() -> None:
    """Oracle: the number of images the extractor saw, and equal values."""
    shots, validation, samples = digits("shots").images, digits("validation").images, digits("test").images[:50]
    first, second = CountingExtractor(), CountingExtractor()
    plain = Suite(FEATURE_METRICS, training=shots, reference=validation, extractor=first)
    kept = {len(shots): plain.training_outputs["features"], len(validation): plain.reference_outputs["features"]}
    cached = Suite(FEATURE_METRICS, training=shots, reference=validation, extractor=second, outputs_of=lambda _, images: kept[len(images)])
    assert plain.compute(samples) == cached.compute(samples)
    assert (first.seen_images, second.seen_images) == (200 + 10 + 50, 50)


def test_stamp_says_what_was_measured_with() -> None:
    """Oracle: by hand. It costs no pass through the extractor."""
    suite = Suite(["kid"], training=digits("shots").images, reference=digits("validation").images, extractor=CountingExtractor())
    network = {"extractor": "pixels", "extractor_weights": "0" * 12, "resize": "none"}
    assert suite.protocol() == {"protocol": "clean", "n_real": 200, "n_train": 10, **network}
    assert "perceptual_weights" in digit_suite(["pairwise_lpips"]).protocol()


def test_unknown_metric_gets_the_nearest_name() -> None:
    """Oracle: one line with the nearest name."""
    with pytest.raises(UserError, match="did you mean memorisation") as refusal:
        check_metrics(["kid", "memorization"])
    assert "\n" not in str(refusal.value)
    assert needed(["holdout_loss", "kid", "intra_lpips"]) == {"loss", "features", "perceptual"}


def test_too_few_images_are_refused() -> None:
    """Oracle: the message names the field and the least number."""
    shots, validation = digits("shots").images, digits("validation").images
    with pytest.raises(UserError, match="kid over 1 held-out"):
        Suite(["kid"], training=shots, reference=validation[:1], extractor=CountingExtractor())
    with pytest.raises(UserError, match=r"evaluate\.samples: 10 .* 11 or more"):
        digit_suite(["intra_distance"]).compute(validation[:10])
    with pytest.raises(UserError, match=r"evaluate\.samples: 1 "):
        digit_suite(["kid"]).compute(validation[:1])


def test_two_held_out_images_give_values() -> None:
    """Oracle: the definitions: a fold of two has everything but the kernel distance's error."""
    suite = Suite(FEATURE_METRICS, training=digits("shots").images[:8], reference=digits("shots").images[8:], extractor=CountingExtractor())
    assert set(suite.compute(digits("test").images[:30])) == {*FEATURE_METRICS, "occupancy", "memorisation_ratio"}


def test_what_a_metric_needs_must_be_handed_over() -> None:
    """Oracle: the message names the loader."""
    shots = digits("shots").images
    with pytest.raises(ValueError, match="load_extractor"):
        Suite(["kid"], training=shots, reference=shots)
    with pytest.raises(ValueError, match="load_perceptual"):
        Suite(["intra_lpips"], training=shots, reference=shots)


def test_a_network_sees_each_set_once_whatever_needs_it() -> None:
    """Oracle: the number of images it saw: one network as the extractor and as DINOv2, with four metrics."""
    shots, validation, samples = digits("shots").images, digits("validation").images, digits("test").images[:50]
    network = CountingExtractor()
    suite = Suite(
        ["fd", "kid", "memorisation", "fd_dinov2"], training=shots, reference=validation, extractor=network, networks={"dinov2": network}
    )
    values = suite.compute(samples)
    assert values["fd_dinov2"] == values["fd"]
    assert network.seen_images == len(shots) + len(validation) + len(samples)


def test_stamp_names_the_networks_beside_the_extractor() -> None:
    """Oracle: by hand; only of the metrics that are computed."""
    stamp = digit_suite(["kid", "cmmd"]).protocol()
    assert (stamp["clip"], stamp["clip_weights"], stamp["clip_resize"]) == ("pixels", "0" * 12, "none")
    assert not any("dinov2" in key or "inception" in key for key in stamp)


def test_a_metrics_network_must_be_handed_over() -> None:
    """Oracle: the message names what is missing."""
    shots = digits("shots").images
    with pytest.raises(ValueError, match="dinov2"):
        Suite(["fd_dinov2"], training=shots, reference=shots, extractor=CountingExtractor())


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.of_samples and name != "inception_score"])
def test_no_value_depends_on_the_order_of_images(name: str) -> None:
    """Oracle: the same images shuffled. The Inception score is over runs of successive images."""
    samples = digits("test").images[:120]
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    plain, shuffled = digit_suite([name]).compute(samples), digit_suite([name]).compute(samples[order])
    assert plain == pytest.approx(shuffled, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [name for name, metric in METRICS.items() if metric.of_samples])
def test_equal_samples_give_numbers(name: str) -> None:
    """Oracle: no error and no NaN from one picture 120 times."""
    samples = digits("test").images[:1].expand(120, -1, -1, -1)
    assert all(torch.isfinite(torch.tensor(value)) for value in digit_suite([name]).compute(samples).values())
