"""What a step of a file in sweeps/ computes and sends, counted in the real training loop.

The networks are the published architectures with tensors that have shapes but no values (PyTorch's FakeTensorMode), so a count needs
neither weights nor memory. Counted are matrix products, convolutions and attention, those of second derivatives among them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DModel, VQModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.costs.scaling.model import Gather
from bench.costs.step.gan_cost import seconds_of
from fewshot_ray.data.images import ImageSet
from fewshot_ray.data.target import Fold
from fewshot_ray.errors import UserError
from fewshot_ray.methods.gan import GanMethod
from fewshot_ray.models import adm
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.classifier import NoiseAwareClassifier
from fewshot_ray.models.gan_source import build_gan
from fewshot_ray.spec.document import Document, ranges, read_document
from fewshot_ray.storage import Folder
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.compose import TrialSpec, check_document, compose, preset_values, with_values
from fewshot_ray.trial.diffusion import FoldIngredients
from fewshot_ray.trial.families import materials_of
from fewshot_ray.trial.materials import Materials

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
PRESETS = (
    *("ant-ddpm", "ant-ldm", "sdft-metfaces", "sdft-aahq", "sadm-dit"),
    *("compose", "ten-images", "mixdl-stylegan2", "mixdl-fastgan"),
)
SHOTS = 10
CLASSES = 200
"""Of a class-conditional target, which the file leaves open: as many as CUB-200-2011 has."""


def celeba() -> Backbone:
    """google/ddpm-celebahq-256."""
    network = UNet2DModel(
        sample_size=256,
        block_out_channels=(128, 128, 256, 256, 512, 512),
        down_block_types=(*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4),
        layers_per_block=2,
        attention_head_dim=None,
    )
    return Backbone(network, DDPMScheduler())


def ldm() -> Backbone:
    """CompVis/ldm-celebahq-256."""
    network = UNet2DModel(sample_size=64, block_out_channels=(224, 448, 672, 896), layers_per_block=2, attention_head_dim=32)
    levels = 3
    coder = VQModel(
        block_out_channels=(128, 256, 512),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=3,
        num_vq_embeddings=8192,
    )
    return Backbone(network, DDPMScheduler(), autoencoder=Autoencoder(coder))


def dit() -> Backbone:
    """facebook/DiT-XL-2-256."""
    network = DiTTransformer2DModel(
        sample_size=32,
        in_channels=4,
        out_channels=8,
        patch_size=2,
        num_layers=28,
        num_attention_heads=16,
        attention_head_dim=72,
        num_embeds_ada_norm=1000,
    )
    levels = 4
    coder = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=4,
    )
    return Backbone(network, DDPMScheduler(), autoencoder=Autoencoder(coder), class_names=tuple(map(str, range(1000))))


SOURCES = {"google/ddpm-celebahq-256": celeba, "CompVis/ldm-celebahq-256": ldm, "facebook/DiT-XL-2-256": dit}
"""By the files' `source.model`; random weights."""


@dataclass(frozen=True)
class Step:
    """A file's step on average over its run, a worker's."""

    preset: str
    params: str
    methods: str
    precision: str
    batch: int
    """Global, as the file has it."""
    images: int
    """A worker's, with as many workers as the file has."""
    most_workers: int
    """The largest power of two of workers with an image, and where images are compared a whole group, for each."""
    trained_parameters: int
    flops_per_image: float
    sums: tuple[tuple[float, float], ...]
    """Bytes of each all-reduce, and how often a step has it."""
    gathers: tuple[Gather, ...]

    @property
    def reduced_bytes(self) -> float:
        """All-reduced in a step."""
        return sum(bytes_ * count for bytes_, count in self.sums)


class Recorded(Group):
    """The first of several workers, the others only imagined: notes what it would send."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.rank, self.size = 0, size
        self.sums: Counter[int] = Counter()
        self.gathers: Counter[tuple[int, int]] = Counter()
        """By a row's bytes and the rows of all workers."""

    def _sum_bucket(self, bucket: Sequence[Tensor]) -> None:
        self.sums[sum(tensor.numel() * tensor.element_size() for tensor in bucket)] += 1

    def smallest(self, value: int, device: torch.device) -> int:
        """As if the others had the same."""
        return value

    def any(self, own: bool) -> bool:
        """As if the others had the same."""
        return own

    def total(self, value: int, device: torch.device) -> int:
        """As if the others had the same."""
        self.sums[torch.tensor(value).element_size()] += 1
        return value * self.size

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """As if the others had the same."""
        self.gathers[own[:1].numel() * own.element_size(), total] += 1
        return torch.cat([own] * self.size)[:total]


class Counted(TorchDispatchMode):
    """Counts what tensors without values would compute; where Python asks for a value it gets one that is as good as any."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0.5 if args[0].is_floating_point() else 1
        if func is torch.ops.aten._unique2.default:  # MixDL's drawn layers: one of them, whose distances cost next to nothing
            with unset_fake_temporarily():
                drawn = torch.zeros(1, dtype=torch.long)
            return drawn, drawn, drawn
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


@contextmanager
def without_values() -> Iterator[Counted]:
    """Within the block tensors have shapes only. They are all on one device, so no module is moved, which FakeTensorMode can't."""

    def copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
        """As PyTorch's own, which would touch memory that isn't there."""
        copy = tensor.detach().clone()
        made = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
        memo[id(tensor)] = made
        return made

    counted = Counted()
    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.Module, "_apply", lambda module, *_, **__: module))
        stack.enter_context(patch.object(Tensor, "__deepcopy__", copied))
        stack.enter_context(patch.object(nn.Parameter, "__deepcopy__", copied))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(counted)
        yield counted


@contextmanager
def random_networks() -> Iterator[None]:
    """Within the block the networks that methods read from files are of the same architecture, with random weights."""
    from fewshot_ray.metrics import encoders, perceptual
    from fewshot_ray.metrics.extractors import inception as extractor

    def classifier(ingredients: FoldIngredients, stage: Any) -> dict[str, Tensor]:
        backbone = ingredients.backbone
        return NoiseAwareClassifier(backbone.shape[0], backbone.shape[1:]).state_dict()

    weights = SimpleNamespace(hash="random")
    with ExitStack() as stack:
        stack.enter_context(patch.object(FoldIngredients, "read", classifier))
        stack.enter_context(patch.object(encoders, "find_weights", return_value=weights))
        stack.enter_context(patch.object(extractor, "inception_network", lambda _: inception()))
        stack.enter_context(patch.object(perceptual, "find_weights", return_value=weights))
        stack.enter_context(patch.object(perceptual, "_fill_trunk"))
        yield


def inception() -> nn.Module:
    """Inception-V3 as torch-fidelity has it, with random weights."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kind = module.FeatureExtractorInceptionV3
    with patch.object(module, "load_state_dict_from_url", return_value={}), patch.object(kind, "load_state_dict"):
        network: nn.Module = kind("inception", ["2048"])
    return network


def documents(preset: str) -> Iterator[tuple[str, Document]]:
    """A file at its preset values, and once for each of the ways it may choose what is trained."""
    document, _ = check_document(read_document(SWEEPS / f"{preset}.yaml"))
    values, choice = preset_values(document), ranges(document.tree).get("train.params")
    for params in getattr(choice, "values", None) or [None]:
        chosen = with_values(document, {**values, **({} if params is None else {"train.params": params})})
        yield preset, chosen


def resized(document: Document, batch: int, workers: int) -> Document:
    """With another global batch and number of workers."""
    tree = document.tree
    resources = {**tree.get("resources", {}), "workers": workers}
    return replace(document, tree={**tree, "train": {**tree["train"], "batch_size": batch}, "resources": resources})


def most_workers(document: Document, batch: int) -> int:
    """The largest power of two of workers that the file's own checks take, with an image for each."""
    most = 1
    while 2 * most <= batch:
        try:
            compose(resized(document, batch, 2 * most))
        except UserError:
            break
        most *= 2
    return most


def materials(spec: TrialSpec, device: torch.device) -> Materials:
    """With the source's architecture in place of its weights."""
    made = materials_of(spec, Folder("unused"), device)
    own: dict[str, Any] = made.__dict__
    if spec.gan is not None:
        own["_source"] = (build_gan(spec.gan, seed=0), "random")
        return made
    if spec.adm is not None:
        backbone = Backbone(adm.adm_network(spec.adm), adm._scheduler(spec.adm))
    else:
        backbone = SOURCES[str(spec.file.source.model)]()
    backbone.network.eval()
    own |= {"_source": (backbone, "random"), "source_images": (torch.empty(0), "random")}
    if backbone.class_names:
        own["class_names"] = tuple(map(str, range(CLASSES)))
    return made


def training(spec: TrialSpec, device: torch.device, group: Group) -> Training:
    """As a trial makes it, on blank images."""
    made = materials(spec, device)
    names = tuple(f"{number}/{number}.png" for number in range(SHOTS))
    images = ImageSet(torch.zeros((SHOTS, made.channels, *made.size), dtype=torch.uint8), names, names)
    result = made.training(Fold("all", train=images, holdout=images.select([])), group)
    for module in result.method.modules().values():
        module.train()
    return result


def kinds_of_steps(made: Training, steps: int) -> dict[int, float]:
    """The first step of each kind, by the phases and mixtures that are active, and its kind's share of the run."""
    method = made.method
    mixup = method.mixup if isinstance(method, GanMethod) else None
    first: dict[Any, int] = {}
    counts: Counter[Any] = Counter()
    for step in range(steps):
        kind = (tuple(phase.active(step) for phase in method.phases()), mixup is not None and mixup.active(step))
        first.setdefault(kind, step)
        counts[kind] += 1
    return {first[kind]: count / steps for kind, count in counts.items()}


def counted_step(preset: str, document: Document) -> Step:
    """Count the steps of every kind."""
    file = compose(document).file
    batch, workers = file.train.batch_size, file.resources.workers
    images, group = batch // workers, Recorded(max(2, workers))
    spec = compose(resized(document, images * group.size, group.size))
    flops, sums, gathers = 0.0, defaultdict[int, float](float), defaultdict[tuple[int, int], float](float)
    with without_values() as counted, random_networks():
        made = training(spec, torch.device("cpu"), group)
        for step, share in kinds_of_steps(made, file.train.steps).items():
            counted.flops, made.step = 0, step
            group.sums.clear()
            group.gathers.clear()
            made.take_step()
            flops += share * counted.flops
            for bytes_, count in group.sums.items():
                sums[bytes_] += share * count
            for key, count in group.gathers.items():
                gathers[key] += share * count
        kinds = kinds_of_steps(made, file.train.steps)
        phases = [phase for phase in made.method.phases() if any(phase.active(step) for step in kinds)]
        trained = sum({id(p): p.numel() for phase in phases for p in phase.parameters}.values())
    whole = images * group.size
    return Step(
        preset,
        spec.params,
        " ".join(spec.methods),
        file.train.precision,
        batch,
        images,
        most_workers(document, batch),
        trained,
        flops / images,
        tuple(sorted(sums.items())),
        tuple(Gather(row, None if total == whole else total, count) for (row, total), count in sorted(gathers.items())),
    )


def measured_step_sec(document: Document, device: torch.device, repetitions: int) -> float:
    """As counted, a worker's step on a device without what it would send, with random weights: every kind's median, on average."""
    file = compose(document).file
    images, group = file.train.batch_size // file.resources.workers, Recorded(max(2, file.resources.workers))
    spec = compose(resized(document, images * group.size, group.size))
    with random_networks():
        made = training(spec, device, group)
        total = 0.0
        for step, share in kinds_of_steps(made, file.train.steps).items():

            def again(step: int = step) -> None:
                made.step = step
                made.take_step()

            again()
            total += share * median(seconds_of(again, device) for _ in range(repetitions))
    return total
