"""Source models with images, and the trainings that start from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from bench.costs.step.cases import Size
from bench.costs.step.networks import make_autoencoder, transformer, unet
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import frozen
from fewshot_ray.methods.registry import MethodConfig
from fewshot_ray.methods.stage import Stage
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.classifier import NoiseAwareClassifier
from fewshot_ray.models.parameters import PARAMS, tune
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.diffusion import make_optimizer


@dataclass
class Ready:
    """Ingredients that read nothing; every stage is an untrained classifier."""

    backbone: Backbone
    source: nn.Module
    seed: int = 0
    given: list[nn.Module] = field(default_factory=list)
    """Source networks handed out."""

    def source_network(self) -> nn.Module:
        """As a trial's: a copy a call."""
        self.given.append(frozen(copy.deepcopy(self.source).to(self.backbone.device)))
        return self.given[-1]

    def source_images(self) -> tuple[Tensor, str]:
        """Never looked at."""
        return torch.empty(0), "source"

    def training_images(self) -> tuple[Tensor, str]:
        """Never looked at."""
        return torch.empty(0), "target"

    def read(self, stage: Stage) -> dict[str, Tensor]:
        """A classifier's weights, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return NoiseAwareClassifier(self.backbone.shape[0], self.backbone.shape[1:]).state_dict()


class Space:
    """A source model with its images, from which trainings are made."""

    def __init__(self, name: str, source: Backbone, size: Size, device: torch.device, train: TrainSpec) -> None:
        self.name, self.source, self.size, self.device, self.train = name, source, size, device, train
        autoencoder = source.autoencoder
        self.autoencoder = autoencoder and Autoencoder(copy.deepcopy(autoencoder.model).to(device))
        images = torch.randint(256, (10, source.channels, *source.size), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        labels = torch.zeros(len(images), dtype=torch.long) if source.class_names else None
        self.batches = Batches(images, size.batch, seed=0, flip=True, device=device, autoencoder=self.autoencoder, labels=labels)

    def training(
        self, configs: Mapping[str, MethodConfig], params: str, *, compiled: bool = False, given: list[nn.Module] | None = None
    ) -> Training:
        """As a trial makes it, its networks in training mode; `given` collects the teachers."""
        backbone = self.source.copy(autoencoder=self.autoencoder).to(self.device)
        tuned = tune(backbone.network, params, PARAMS[params][0](), seed=0)
        if compiled:
            tuned.network.compile()
        ingredients = Ready(backbone, self.source.network, given=[] if given is None else given)
        parts = [METHODS[name].make(config, ingredients) for name, config in configs.items()]
        optimizer = make_optimizer(list(tuned.trained.values()), self.train)
        method = DiffusionMethod(backbone, tuned, optimizer, parts, label_dropout=self.train.label_dropout)
        training = Training(method, self.batches, self.train, seed=0, device=self.device, group=Group())
        for module in method.modules().values():
            module.train()
        return training


def make_space(name: str, size: Size, device: torch.device, train: TrainSpec) -> Space:
    """ "pixel", "latent" or "dit"; random weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "pixel":
            source = Backbone(unet(size.unet, size.pixels, size.channels, size).eval(), DDPMScheduler())
        elif name == "latent":
            autoencoder = Autoencoder(make_autoencoder(size))
            source = Backbone(unet(size.latent_unet, size.latents, 4, size).eval(), DDPMScheduler(), autoencoder=autoencoder)
        else:
            source = Backbone(transformer(size).eval(), DDPMScheduler(), class_names=("target",))
    return Space(name, source, size, device, train)


def loss_of_a_step(training: Training) -> float:
    """Of the next one."""
    training.take_step()
    return training.read_losses()[-1]
