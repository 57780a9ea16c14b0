"""GANs in a trial: built, checked, trained, evaluated and restored from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor
from torch.optim import Optimizer

from fewshot_ray.data.target import Fold
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.fastgan import FastGanMethod, FastGanRecipe, ImageDistance, pixel_distance
from fewshot_ray.methods.gan import GanMethod, GanPart
from fewshot_ray.methods.mixdl import MixDlConfig
from fewshot_ray.methods.phase import LR_FACTOR
from fewshot_ray.methods.randomness import derived_seed
from fewshot_ray.methods.stage import Stage, read
from fewshot_ray.methods.stylegan2 import StyleGan2Method, StyleGan2Recipe
from fewshot_ray.metrics.perceptual import load_perceptual
from fewshot_ray.models.gan import FastGan, Gan, StyleGan2
from fewshot_ray.models.gan_source import build_gan, load_gan
from fewshot_ray.models.source import weights_hash
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.sections import EvaluateSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.checkpoint import Checkpoint, saved_buffers, trained_weights
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.compose import PLAIN, preset_specs
from fewshot_ray.trial.evaluation import Instruments
from fewshot_ray.trial.gan_candidate import GanCandidate
from fewshot_ray.trial.gan_settings import architecture_of
from fewshot_ray.trial.latent_paths import LatentPaths
from fewshot_ray.trial.materials import Materials, load_parameters


@lru_cache(maxsize=2)
def _loaded(place: str, kind: str) -> tuple[Gan, str]:
    """The GAN at a place, of a kind, and its hash; read once per process."""
    gan = load_gan(place, kind)
    return gan, gan_hash(gan)


def gan_hash(gan: Gan) -> str:
    """Hash of both networks' weights."""
    return f"{weights_hash(gan.generator)}-{weights_hash(gan.discriminator)}"


class GanMaterials(Materials):
    """The materials of a GAN. `source_gan` is shared and must not be trained."""

    @property
    def source_gan(self) -> Gan:
        """The networks that training starts from, on the CPU."""
        return self._source[0]

    @property
    def source_hash(self) -> str:
        """Hash of generator and discriminator."""
        return self._source[1]

    @cached_property
    def _source(self) -> tuple[Gan, str]:
        config = self.spec.gan
        assert config is not None
        if config.weights is not None:
            return _loaded(config.weights, architecture_of(self.spec.file))
        gan = build_gan(config, seed=self.spec.seed)
        return gan, gan_hash(gan)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the generated images."""
        return self.source_gan.size

    @property
    def channels(self) -> int:
        """Channels of the generated images."""
        return self.source_gan.channels

    def student(self) -> Gan:
        """A copy of the source on the device, to be trained."""
        return self.source_gan.copy().to(self.device)

    def stages(self, fold: Fold) -> Sequence[Stage]:
        """The stages of all methods; they don't depend on the fold."""
        ingredients = FoldIngredients(self, self.source_gan)
        return [stage for name, config in self.spec.methods.items() for stage in METHODS[name].stages(config, ingredients)]

    def training(self, fold: Fold, group: Group) -> Training:
        """A training with a new GAN and batches; all seeds depend on the trial's seed and the fold's name."""
        train = self.spec.file.train
        seed = derived_seed(self.spec.seed, "train", fold.name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "heads"))  # what methods add to the discriminator
            method = self.method()
        method.workers = group
        batches = Batches(fold.train.images, train.batch_size, seed=seed, flip=train.flip, device=self.device)
        return Training(method, batches, train, seed=seed, device=self.device, group=group)

    def method(self) -> GanMethod:
        """The training recipe with the parts of the methods, on a new copy of the source."""
        gan, recipe, methods = self.student(), self.spec.recipe, self.spec.methods
        ingredients = FoldIngredients(self, gan)
        parts: list[GanPart] = [METHODS[name].make(config, ingredients) for name, config in methods.items() if name != PLAIN]
        for part in parts:
            for head in part.heads.values():
                head.to(self.device)
        augmentation = recipe.augmentation(self.device) if recipe is not None else None
        if isinstance(gan, StyleGan2):
            assert isinstance(recipe, StyleGan2Recipe)
            method: GanMethod = StyleGan2Method(gan, recipe, parts, augmentation)
        else:
            assert isinstance(gan, FastGan)
            assert isinstance(recipe, FastGanRecipe)
            method = FastGanMethod(gan, recipe, parts, augmentation, self.image_distance(recipe))
        method.use(self._optimizers(method))
        return method

    def _optimizers(self, method: GanMethod) -> Mapping[str, Optimizer]:
        """Fused Adam for generator and discriminator.

        With lazy regularisation, learning rate and betas are those of regularisation in every step (StyleGAN2, appendix B).
        """
        train, recipe = self.spec.file.train, self.spec.recipe
        made = {}
        for name, parameters in (("D", method.discriminator_parameters()), ("G", list(method.gan.generator.parameters()))):
            factor, betas = 1.0, (train.betas[0], train.betas[1])
            if isinstance(recipe, StyleGan2Recipe):
                factor, betas = recipe.lazy(name, betas)
            made[name] = torch.optim.Adam([{"params": parameters, LR_FACTOR: factor}], lr=train.lr, betas=betas, fused=True)
        return made

    def image_distance(self, recipe: FastGanRecipe) -> ImageDistance:
        """The distance between images and the discriminator's reconstructions of them, for FastGAN."""
        if recipe.reconstruction == "pixels" or recipe.reconstruction_weight == 0:
            return pixel_distance
        config = self.spec.file.evaluate
        perceptual = load_perceptual(device=self.device, weights=config.lpips_weights if config.lpips_network == "vgg" else None)
        return perceptual.differentiable

    def candidate(self, training: Training) -> GanCandidate:
        """The GAN in training, by its current weights."""
        assert isinstance(training.method, GanMethod)
        return GanCandidate(training.method.gan)

    def source_candidate(self) -> GanCandidate:
        """A copy of the source GAN."""
        return GanCandidate(self.student())

    def saved_candidate(self, fold: Fold, checkpoint: Checkpoint, prefix: str) -> GanCandidate:
        """A GAN with the averaged generator and the last discriminator of a checkpoint, in eval mode."""
        gan = self.student()
        averages, buffers = trained_weights(checkpoint, prefix), saved_buffers(checkpoint, prefix)
        names = dict(gan.generator.named_parameters())
        load_parameters(names, {name: tensor for name, tensor in averages.items() if name in names or not name.startswith("generator.")})
        trained = {name: checkpoint.tensors[f"{prefix}trained/discriminator.{name}"] for name, _ in gan.discriminator.named_parameters()}
        load_parameters(dict(gan.discriminator.named_parameters()), trained)
        for module, kind in ((gan.generator, "generator"), (gan.discriminator, "discriminator")):
            for name, buffer in module.named_buffers():
                full = f"{kind}.{name}"
                buffer.copy_(averages[full] if full in averages else buffers[full])
        gan.generator.eval()
        gan.discriminator.eval()
        return GanCandidate(gan)

    def own_metrics(self, config: EvaluateSpec, fold: Fold, instruments: Instruments, group: Group) -> LatentPaths:
        """Metrics of how evenly images change along lines through the latent space."""
        return LatentPaths(config, instruments, seed=self.spec.file.seed, device=self.device)

    def check(self, document: Document) -> None:
        """Check that generated images are finite, MixDL's layers and latents, and that FastGAN's image distance can be loaded."""
        GanCandidate(self.source_gan).check_finite()
        for spec in preset_specs(document):
            if isinstance(mixdl := spec.methods.get("mixdl"), MixDlConfig):
                self._check_mixdl(mixdl, document)
        if isinstance(self.spec.recipe, FastGanRecipe):
            self.image_distance(self.spec.recipe)

    def _check_mixdl(self, config: MixDlConfig, document: Document) -> None:
        unknown = [name for name in config.layers or () if name not in self.source_gan.layer_names]
        if unknown:
            known = ", ".join(self.source_gan.layer_names)
            raise document.error("method.mixdl.layers", f"'{unknown[0]}' is no layer of the generator; {known} are")
        fewest = min(len(fold.train) for fold in self.folds)
        if fewest < config.latents:
            raise document.error(
                "method.mixdl.latents",
                f"{config.latents} given, but a fold trains on {fewest} images; as many at most would be right",
            )

    def trained_numbers(self) -> int:
        """Number of parameters of generator and discriminator."""
        gan = self.source_gan
        return sum(parameter.numel() for network in (gan.generator, gan.discriminator) for parameter in network.parameters())

    def describe(self) -> str:
        """Generator class, image shape and parameters of both networks, in one line."""
        gan = self.source_gan
        counts = [sum(parameter.numel() for parameter in network.parameters()) / 1e6 for network in (gan.generator, gan.discriminator)]
        return (
            f"{type(gan.generator).__name__}, {gan.channels} x {gan.size[0]} x {gan.size[1]}, {counts[0]:.2f} M parameters, "
            f"and {counts[1]:.2f} M of the discriminator"
        )

    def warnings(self) -> list[str]:
        """A warning on FastGAN with several workers, whose batch normalisation is per worker."""
        workers = self.spec.file.resources.workers
        if not isinstance(self.source_gan, FastGan) or workers == 1:
            return []
        return [f"resources.workers: FastGAN normalises over what a worker holds, so {workers} workers train another model than one would"]


@dataclass
class FoldIngredients:
    """What methods are made from, for one fold (implements `methods.registry.GanIngredients`)."""

    materials: GanMaterials
    gan: Gan

    @property
    def seed(self) -> int:
        """The seed of stages, the same in all trials of a sweep."""
        return self.materials.spec.file.seed

    @property
    def source_hash(self) -> str:
        """Hash of the source's weights."""
        return self.materials.source_hash

    def source_gan(self) -> Gan:
        """A frozen copy of the source, in eval mode, shared by the methods."""
        return self._source_gan

    @cached_property
    def _source_gan(self) -> Gan:
        source = self.materials.student()
        for network in (source.generator, source.discriminator):
            network.eval()
        source.discriminator.requires_grad_(False)
        return source

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A stage's tensors, from the cache or computed now."""
        return read(stage, self.materials.cache)
