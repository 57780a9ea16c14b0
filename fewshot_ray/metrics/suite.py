"""The metrics of an evaluation by name, all over the same samples, reference and extractor."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors import Extractor, outputs
from fewshot_ray.metrics.fidelity import SCORE_SPLITS
from fewshot_ray.metrics.perceptual import PerceptualDistance
from fewshot_ray.metrics.protocols import CLEAN, MetricProtocol
from fewshot_ray.metrics.values import FEATURE_VALUES, NEIGHBOURS, PERCEPTUAL_VALUES, FeatureSets, PerceptualSets

Network = Literal["inception", "dinov2", "clip"]
NETWORKS: tuple[Network, ...] = ("inception", "dinov2", "clip")
"""Extractors of metrics that are defined by one, whatever `evaluate.extractor` is."""
OUTPUTS = {"sfid": "spatial", "inception_score": "logits"}
"""What a metric reads of its network, where it isn't `features`."""


@dataclass(frozen=True)
class Metric:
    """Whether lower or higher is better, and what it is computed from: held-out loss, the extractor's features, LPIPS, a network's."""

    direction: Literal["min", "max"]
    needs: Literal["loss", "features", "perceptual"] | Network
    real_images: int = 0
    """The least number of held-out images it is defined for."""
    samples: int = 2
    """The least number of samples, where it is made of samples."""
    beyond_training: bool = False
    """Whether there must be more samples than training images too, so that some cluster has two."""
    family: Literal["diffusion", "gan"] | None = None
    """The family of models that it is defined for; None for all."""
    of_samples: bool = True
    """Whether it is computed from samples alone; if not, by the model's family."""
    relative: bool = False
    """Whether it compares with the source model, which must be pre-trained."""
    made_of: tuple[str, ...] = ()
    """The metrics that it is the product of."""


METRICS: Mapping[str, Metric] = {
    "holdout_loss": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_coarse": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_content": Metric("min", "loss", family="diffusion", of_samples=False),
    "loss_cleanup": Metric("min", "loss", family="diffusion", of_samples=False),
    "relative_coarse": Metric("min", "loss", family="diffusion", of_samples=False, relative=True),
    "relative_content": Metric("min", "loss", family="diffusion", of_samples=False, relative=True),
    "relative_cleanup": Metric("min", "loss", family="diffusion", of_samples=False, relative=True),
    "relative_loss": Metric("min", "loss", family="diffusion", of_samples=False, relative=True),
    "relative_distance": Metric("min", "features", real_images=3, samples=3, relative=True),
    "relative_error": Metric(
        "min",
        "features",
        real_images=3,
        samples=3,
        family="diffusion",
        of_samples=False,
        relative=True,
        made_of=("relative_loss", "relative_distance"),
    ),
    "fd": Metric("min", "features", real_images=2),
    "kid": Metric("min", "features", real_images=2),
    "alignment": Metric("min", "features", relative=True),
    "alignment_lpips": Metric("min", "perceptual", relative=True),
    "pairwise_distance": Metric("max", "features"),
    "intra_distance": Metric("max", "features", beyond_training=True),
    "pairwise_lpips": Metric("max", "perceptual"),
    "intra_lpips": Metric("max", "perceptual", beyond_training=True),
    "memorisation": Metric("min", "features", real_images=1),
    "precision": Metric("max", "features", real_images=NEIGHBOURS + 1, samples=NEIGHBOURS + 1),
    "recall": Metric("max", "features", real_images=NEIGHBOURS + 1, samples=NEIGHBOURS + 1),
    "density": Metric("max", "features", real_images=NEIGHBOURS + 1, samples=NEIGHBOURS + 1),
    "coverage": Metric("max", "features", real_images=NEIGHBOURS + 1, samples=NEIGHBOURS + 1),
    "vendi": Metric("max", "features"),
    "modes": Metric("max", "features"),
    "modes_lpips": Metric("max", "perceptual"),
    "mifid": Metric("min", "features", real_images=2),
    "fld": Metric("min", "features", real_images=2),
    "fld_gap": Metric("max", "features", real_images=2),
    "sfid": Metric("min", "inception", real_images=2),
    "inception_score": Metric("max", "inception", samples=SCORE_SPLITS),
    "fd_dinov2": Metric("min", "dinov2", real_images=2),
    "cmmd": Metric("min", "clip", real_images=2),
    "path_uniformity": Metric("min", "features", family="gan", of_samples=False),
    "ppl_uniformity": Metric("min", "perceptual", family="gan", of_samples=False),
}


def check_metrics(names: Iterable[str]) -> None:
    """Raises UserError, with the nearest name, where a name is not one of METRICS."""
    for name in names:
        if name not in METRICS:
            nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
            raise UserError(f"evaluate.metrics: there is no {name!r}; {', '.join(METRICS)} are right (did you mean {nearest}?)")


def components(names: Iterable[str]) -> list[str]:
    """The metrics with what they are made of in place of those that are products."""
    return list(dict.fromkeys(part for name in names for part in METRICS[name].made_of or (name,)))


def products(names: Iterable[str], values: Mapping[str, float]) -> dict[str, float]:
    """Those of the metrics that are products, of the values of what they are made of."""
    made = {name: METRICS[name].made_of for name in names}
    return {
        name: math.prod(values[part] for part in parts) for name, parts in made.items() if parts and all(part in values for part in parts)
    }


def needed(names: Iterable[str]) -> set[str]:
    """What the metrics are computed from: some of "loss", "features", "perceptual", and NETWORKS."""
    return {METRICS[name].needs for name in components(names)}


def least_samples(name: str, training_images: int) -> int:
    """The least number of samples that the metric is defined for; 0 for one that is made of none."""
    metric = METRICS[name]
    if not metric.of_samples:
        return 0
    return max(metric.samples, training_images + 1 if metric.beyond_training else 0)


class Suite:
    """Computes the sample metrics among `metrics` (the held-out loss needs no samples; the trial computes it).

    `training` and `reference` are uint8 [N, C, H, W]: the images trained on, and real ones never trained on. `networks` are the extractors
    of the metrics that are defined by one (NETWORKS). `outputs_of` replaces the extractors' pass over the real images (by a cache).
    """

    def __init__(
        self,
        metrics: Sequence[str],
        *,
        training: Tensor,
        reference: Tensor,
        extractor: Extractor | None = None,
        perceptual: PerceptualDistance | None = None,
        networks: Mapping[str, Extractor] | None = None,
        outputs_of: Callable[[Extractor, Tensor], dict[str, Tensor]] | None = None,
        conventions: MetricProtocol = CLEAN,
    ) -> None:
        check_metrics(metrics)
        self.metrics = tuple(metrics)
        self.training = training
        self.reference = reference
        self.real_images = len(reference)
        self._check_real_images()
        self.extractor = extractor
        self.perceptual = perceptual
        self.conventions = conventions
        self.networks = dict(networks or {})
        if "perceptual" in needed(metrics) and perceptual is None:
            raise ValueError("LPIPS metrics are asked for without a perceptual distance; load_perceptual makes one")
        missing = needed(metrics) - {"loss", "perceptual"} - self._extractors().keys()
        if missing:
            raise ValueError(f"feature metrics are asked for without an extractor ({', '.join(sorted(missing))}); load_extractor makes one")
        self._outputs_of = outputs_of or outputs

    @cached_property
    def training_outputs(self) -> dict[str, dict[str, Tensor]]:
        """Of the images trained on, what each extractor gives, by what needs it; computed when first used."""
        return self._by_need(self.training, self._outputs_of)

    @cached_property
    def reference_outputs(self) -> dict[str, dict[str, Tensor]]:
        """The same of the real images never trained on."""
        return self._by_need(self.reference, self._outputs_of)

    @property
    def training_features(self) -> Tensor:
        """The extractor's features of the images trained on, float32 [N, D]."""
        return self.training_outputs["features"]["features"]

    @property
    def reference_features(self) -> Tensor:
        """The extractor's features of the real images never trained on, float32 [M, D]."""
        return self.reference_outputs["features"]["features"]

    def compute(self, samples: Tensor, source: Callable[[], Tensor] | None = None) -> dict[str, float]:
        """The value of each sample metric for samples uint8 [N, C, H, W], N >= 2; each network sees the samples once.

        `source` gives the source model's samples from the same noise, without which metrics relative to it are left out.

        Beside them: `kid_stderr` with kid (left out where it is undefined, with two images in a set), with intra_distance
        and intra_lpips `occupancy` and `occupancy_lpips`, the share of training images that are nearest to some sample, with memorisation
        `memorisation_ratio`, with inception_score `inception_score_std`. Raises UserError where the samples are too few.
        """
        self._check_samples(len(samples))
        names = [name for name in self.metrics if METRICS[name].of_samples and (source is not None or not METRICS[name].relative)]
        generated = self._by_need(samples, outputs, needed(names))
        sets = {(METRICS[name].needs, OUTPUTS.get(name, "features")) for name in names if name in FEATURE_VALUES}
        features = {pair: self._sets(generated, *pair, source) for pair in sets}
        values: dict[str, float] = {}
        for name in names:
            if name in FEATURE_VALUES:
                values |= FEATURE_VALUES[name](features[METRICS[name].needs, OUTPUTS.get(name, "features")])
        if self.perceptual is not None:
            perceptual = PerceptualSets(self.perceptual, samples, self.training, self.conventions, source)
            for name in names:
                if name in PERCEPTUAL_VALUES:
                    values |= PERCEPTUAL_VALUES[name](perceptual)
        return values

    def protocol(self) -> dict[str, str | int]:
        """The measurement protocol stored with every value; the caller adds N_gen, the sampler, its steps and the seed."""
        stamp: dict[str, str | int] = {"protocol": self.conventions.name, "n_real": self.real_images, "n_train": len(self.training)}
        if {"intra_distance", "intra_lpips"} & set(self.metrics):
            stamp["intra_cap"] = self.conventions.intra_cap
        if "fd" in self.metrics and self.conventions.shots_in_reference:
            stamp["shots_in_reference"] = True
        if self.extractor is not None:
            stamp |= {"extractor": self.extractor.id, "extractor_weights": self.extractor.weights_hash, "resize": self.extractor.resize}
        for name, network in self.networks.items():
            if name in needed(self.metrics):
                stamp |= {name: network.id, f"{name}_weights": network.weights_hash, f"{name}_resize": network.resize}
        if self.perceptual is not None:
            stamp |= {
                "perceptual": self.perceptual.id,
                "perceptual_weights": self.perceptual.weights_hash,
                "perceptual_resize": self.perceptual.resize,
            }
        return stamp

    def _extractors(self) -> dict[str, Extractor]:
        """By what needs them."""
        return self.networks | ({"features": self.extractor} if self.extractor is not None else {})

    def _by_need(
        self, images: Tensor, of: Callable[[Extractor, Tensor], dict[str, Tensor]], needs: set[str] | None = None
    ) -> dict[str, dict[str, Tensor]]:
        """What each extractor gives, by what needs it; one that is needed for two things runs once."""
        needs = needed(self.metrics) if needs is None else needs
        wanted = {need: extractor for need, extractor in self._extractors().items() if need in needs}
        found = {id(extractor): of(extractor, images) for extractor in {id(one): one for one in wanted.values()}.values()}
        return {need: found[id(extractor)] for need, extractor in wanted.items()}

    def sets(self, metric: str, samples: Tensor) -> FeatureSets:
        """What a metric of features is computed from, for these samples."""
        need = METRICS[metric].needs
        return self._sets(self._by_need(samples, outputs, {need}), need, OUTPUTS.get(metric, "features"))

    def _sets(
        self, generated: Mapping[str, Mapping[str, Tensor]], need: str, output: str, source: Callable[[], Tensor] | None = None
    ) -> FeatureSets:
        extractor = self._extractors()[need]
        return FeatureSets(
            generated[need][output],
            lambda: self.training_outputs[need][output],
            lambda: self.reference_outputs[need][output],
            self.conventions,
            None if source is None else lambda: self._outputs_of(extractor, source())[output],
        )

    def _check_real_images(self) -> None:
        for name in self.metrics:
            least = METRICS[name].real_images
            if self.real_images < least:
                raise UserError(
                    f"evaluate.metrics: {name} over {self.real_images} held-out images; {least} or more are right (target.holdout)"
                )

    def _check_samples(self, samples: int) -> None:
        least = max((least_samples(name, len(self.training)) for name in self.metrics), default=0)
        if samples < max(2, least):
            raise UserError(f"evaluate.samples: {samples} are too few for {', '.join(self.metrics)}; {max(2, least)} or more are right")
