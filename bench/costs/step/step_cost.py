"""The time of a training step beside the sum of its parts, each timed alone in the same run, and its peak memory.

python bench/costs/step/step_cost.py [--device cuda] [--precision bf16] [--threads 1] [--repetitions 5] [--params full lora ...] [--quick]
python bench/costs/step/step_cost.py --compile [--device cuda]

Bound: how often a step runs each part (`passes`, counted by hand from the papers' losses) times that part's own time. Every
repetition times all parts and then all steps; a row's ratio is the median over repetitions of step over bound, since what slows
the machine for some seconds then slows both.
Memory: what a training holds between steps, and the most that a step adds. On a CPU every allocation of PyTorch is counted (none
of the libraries' own), on a GPU `max_memory_allocated`.
With `--compile`: steps with torch.compile beside eager ones, and how far their losses part.

Weights are random: no figure depends on their values. Exits with 1 where a figure misses its target.
"""

from __future__ import annotations

import argparse
import copy
import gc
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # the profiler's own chatter; read when torch is imported

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DModel
from torch import Tensor, nn

from bench.machine import write_result
from fewshot_ray.methods import METHODS
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import frozen, mean_square
from fewshot_ray.methods.registry import MethodConfig
from fewshot_ray.methods.stage import Stage
from fewshot_ray.metrics.encoders import load_encoder
from fewshot_ray.models.autoencoder import Autoencoder
from fewshot_ray.models.backbone import Backbone
from fewshot_ray.models.class_table import with_class_table, without_label_dropping
from fewshot_ray.models.classifier import NoiseAwareClassifier
from fewshot_ray.models.parameters import PARAMS, tune
from fewshot_ray.spec.sections import TrainSpec
from fewshot_ray.training.batches import Batches
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.trial.diffusion import make_optimizer

MOST_OVER_BOUND = {"cpu": 1.15, "cuda": 1.10}
MOST_ANT_MEMORY = 1.2
"""An ANT step's peak over a plain step's."""
MOST_SDFT_MEMORY = 1.01
"""SDFT's peak over a plain step's with the teacher's weights, its forward pass and the second pass's graph added."""
MOST_LOSS_DIFFERENCE = 1e-4
COMPILED_STEPS = 5
MIB = 2**20

Passes = Counter[str]


@dataclass(frozen=True)
class Size:
    """What a run is measured at."""

    batch: int
    noise_steps: int
    channels: int
    pixels: int
    """The pixel model's side."""
    unet: tuple[int, ...]
    latents: int
    """The latent model's side."""
    latent_unet: tuple[int, ...]
    autoencoder: tuple[int, ...]
    layers: int = 1
    groups: int = 16
    transformer: tuple[int, int] = (2, 16)
    """The DiT's layers, and the width of its 4 heads."""


QUICK = Size(3, 2, 1, 8, (8, 16), 4, (8, 16), (8, 8), groups=4)
COMPILED = Size(4, 2, 3, 16, (32, 64), 8, (32, 64), (16, 16))
SIZES = {
    "cpu": Size(3, 3, 3, 64, (32, 64, 128, 320), 32, (64, 128, 256), (32, 64, 64)),
    "cuda": Size(32, 10, 3, 64, (128, 256, 384, 512), 32, (192, 384, 576), (64, 128, 256), layers=2, groups=32, transformer=(12, 72)),
}


@dataclass(frozen=True)
class Case:
    """Methods that train together."""

    name: str
    methods: Mapping[str, Mapping[str, Any]]

    def configs(self, size: Size, encoder_weights: str | None) -> dict[str, MethodConfig]:
        """Their typed settings."""
        run = {"ant": {"noise_steps": size.noise_steps}, "sadm": {"encoder_weights": encoder_weights}}
        return {name: METHODS[name].config(**{**run.get(name, {}), **settings}) for name, settings in self.methods.items()}


ADVERSARIAL = {"warmup_steps": 0}
EACH = (
    Case("finetune", {"finetune": {}}),
    Case("ant", {"ant": {}}),
    Case("sdft", {"sdft": {}}),
    Case("ddpm_pa", {"ddpm_pa": {}}),
    Case("sadm", {"sadm": {}}),
)
"""For every way to choose the trained parameters."""
MORE = (
    Case("ant source", {"ant": {"inner_network": "source"}}),
    Case("sadm adversarial", {"sadm": ADVERSARIAL}),
    Case("ant sdft", {"ant": {}, "sdft": {}}),
    Case("ant sdft ddpm_pa sadm", {"ant": {}, "sdft": {}, "ddpm_pa": {}, "sadm": ADVERSARIAL}),
)
"""For `full` alone: what they add does not depend on it."""


def passes(configs: Mapping[str, MethodConfig], *, latent: bool) -> Passes:
    """How often a step runs each part, counted by hand."""
    count = Passes({"forward": 1, "backward to weights": 1, "update": 1})
    for name, config in configs.items():
        if name == "ant":
            count += ant_passes(config)
        elif name == "sdft":
            aux = int(config.lambda_aux > 0)
            count += {"teacher forward": int(config.lambda_distill > 0) + aux, "forward": aux, "backward to weights": aux}
        elif name == "ddpm_pa":
            count += {"teacher forward": 1}
        elif name == "sadm":
            count += sadm_passes(config, latent=latent)
    return count


def ant_passes(config: Any) -> Passes:
    """J ascent steps on the noise, through a graph that gives no weight a gradient; one guidance step through the classifier."""
    teacher = "teacher " if config.inner_network == "source" else ""
    ascent = {f"{teacher}forward{' with graph' if teacher else ''}": config.noise_steps, f"{teacher}backward to input": config.noise_steps}
    guided = int(config.guidance > 0)
    return Passes({**ascent, "classifier forward": guided, "classifier backward to input": guided})


def sadm_passes(config: Any, *, latent: bool) -> Passes:
    """Psi of the real images needs no graph; an adversarial step runs both sides once more, for Psi's weights.

    Of latents the real images are decoded once. The generated ones are decoded again for the denoiser: kept from Psi's phase, the
    decoder's graph would be held beside both of Psi's.
    """
    count = Passes({"psi forward without graph": 1, "psi forward": 1, "psi backward to input": 1})
    if latent:
        count += {"decode without graph": 1, "decode": 1, "decode backward to input": 1}
    if config.adversarial(0):
        count += {"psi forward": 2, "psi backward to weights": 2, "psi update": 1}
        count += {"decode without graph": int(latent)}
    return count


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


def unet(widths: tuple[int, ...], pixels: int, channels: int, size: Size) -> UNet2DModel:
    """Attention at the lowest resolution."""
    plain = len(widths) - 1
    return UNet2DModel(
        sample_size=pixels,
        in_channels=channels,
        out_channels=channels,
        layers_per_block=size.layers,
        block_out_channels=widths,
        down_block_types=(*["DownBlock2D"] * plain, "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", *["UpBlock2D"] * plain),
        attention_head_dim=8,
        norm_num_groups=size.groups,
    )


def make_autoencoder(size: Size) -> AutoencoderKL:
    """Of latents with 4 channels."""
    levels = len(size.autoencoder)
    return AutoencoderKL(
        in_channels=size.channels,
        out_channels=size.channels,
        block_out_channels=size.autoencoder,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=size.layers,
        latent_channels=4,
        norm_num_groups=size.groups,
    )


def transformer(size: Size) -> DiTTransformer2DModel:
    """A DiT over latents without an autoencoder, with a new class table."""
    layers, width = size.transformer
    network = DiTTransformer2DModel(
        sample_size=size.latents,
        in_channels=4,
        num_attention_heads=4,
        attention_head_dim=width,
        num_layers=layers,
        num_embeds_ada_norm=10,
    )
    return without_label_dropping(with_class_table(network, 1))


def inception_file(folder: Path) -> str:
    """Inception-V3 with random weights, as a file that Psi is read from."""
    from torch_fidelity import feature_extractor_inceptionv3 as module

    kind = module.FeatureExtractorInceptionV3
    with patch.object(module, "load_state_dict_from_url", return_value={}), patch.object(kind, "load_state_dict"):
        network = kind("inception", ["2048"])
    state = {}
    for name, tensor in network.state_dict().items():
        he = tensor.ndim == 4  # keeps the activations' scale: tiny numbers would be slow on a CPU
        state[name] = torch.randn(tensor.shape) * math.sqrt(2 / tensor[0].numel()) if he else tensor
    path = folder / "inception.pth"
    torch.save(state, path)
    return str(path)


class Parts:
    """A step's parts, each run alone: the student, its optimiser and average are a plain training's."""

    def __init__(self, training: Training, space: Space, encoder: str, encoder_weights: str | None) -> None:
        assert isinstance(training.method, DiffusionMethod)
        self.training = training
        self.backbone = training.method.backbone
        self.network = training.method.tuned.network
        self.trained = list(training.method.trained().values())
        self.teacher = Ready(self.backbone, space.source.network).source_network()
        self.classifier = frozen(NoiseAwareClassifier(self.backbone.shape[0], self.backbone.shape[1:]).to(space.device))
        self.psi = load_encoder(encoder, device=space.device, weights=encoder_weights)
        self.psi_parameters = list(self.psi.parameters())
        # what make_sadm has
        self.psi_optimizer = torch.optim.Adam([{"params": self.psi_parameters, "lr_factor": 0.1}], lr=0.0)
        batch = space.batches.micro_batches(0, Group(), space.size.batch)[0]
        self.x, self.labels = torch.randn_like(batch.x_0), batch.labels
        self.images = self.backbone.decode(self.x).detach()
        self.t = torch.full((len(self.x),), self.backbone.schedule.timesteps // 2, device=space.device)
        self.seconds: dict[str, float] = {}

    def time(self) -> dict[str, float]:
        """Seconds of each part, once."""
        self._time_update()
        x = self.x.detach().requires_grad_()
        with self._autocast():  # as ANT's ascent is
            loss = mean_square(self._predict(self.network, x)).sum()
            self._timed("backward to input", lambda: torch.autograd.grad(loss, x))
        with torch.no_grad(), self._autocast():
            self._timed("teacher forward", lambda: self._predict(self.teacher, self.x))
        self._time_inputs("teacher", " with graph", lambda x: self._predict(self.teacher, x), self.x)
        self._time_inputs("classifier", "", lambda x: F.logsigmoid(self.classifier(x, self.t)), self.x)
        self._time_inputs("psi", "", self.psi, self.images)
        with torch.no_grad(), self._autocast():
            self._timed("psi forward without graph", lambda: self.psi(self.images))
        self._time_psi_update()
        if self.backbone.autoencoder:
            with torch.no_grad(), self._autocast():
                self._timed("decode without graph", lambda: self.backbone.decode(self.x))
            self._time_inputs("decode", "", self.backbone.decode, self.x)
        return dict(self.seconds)

    def _time_update(self) -> None:
        """One plain step in pieces; an update is clipping, optimiser and average."""
        method, config = self.training.method, self.training.config
        optimizer = method.optimizers()["denoiser"]
        optimizer.zero_grad(set_to_none=True)
        with self._autocast():
            prediction = self._timed("forward", lambda: self._predict(self.network, self.x))
            loss = mean_square(prediction).sum()
        self._timed("backward to weights", lambda: torch.autograd.backward(loss, inputs=self.trained))
        self._timed("update", lambda: (clip(self.trained, config.gradient_clip), optimizer.step(), self.training.ema.update()))
        optimizer.zero_grad(set_to_none=True)

    def _time_psi_update(self) -> None:
        with self._autocast():
            loss = self.psi(self.images).square().mean()
        self._timed("psi backward to weights", lambda: torch.autograd.backward(loss, inputs=self.psi_parameters))
        self._timed("psi update", lambda: (clip(self.psi_parameters, 1.0), self.psi_optimizer.step()))
        self.psi_optimizer.zero_grad(set_to_none=True)

    def _time_inputs(self, name: str, suffix: str, network: Callable[[Tensor], Tensor], at: Tensor) -> None:
        """Forward with a graph, and the gradient in its input."""
        x = at.detach().requires_grad_()
        with self._autocast():
            forward = name if name == "decode" else f"{name} forward{suffix}"
            loss = self._timed(forward, lambda: network(x)).float().square().mean()
        self._timed(f"{name} backward to input", lambda: torch.autograd.grad(loss, x))

    def second_graph_bytes(self) -> int:
        """What a further pass of the student holds until the backward pass."""
        with self._autocast():
            return added_bytes(lambda: self._predict(self.network, self.x), self.x.device).kept

    def teacher_bytes(self) -> int:
        """The teacher's weights and what its forward pass takes without a graph."""
        with torch.no_grad(), self._autocast():
            forward = added_bytes(lambda: self._predict(self.teacher, self.x), self.x.device).most
        return forward + sum(parameter.nbytes for parameter in self.teacher.parameters())

    def _predict(self, network: nn.Module, x_t: Tensor) -> Tensor:
        return self.backbone.predict(network, x_t, self.t, self.labels)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.x.device.type, torch.bfloat16, enabled=self.training.config.precision == "bf16")

    def _timed(self, name: str, work: Callable[[], Any]) -> Any:
        self.seconds[name], result = timed(work, self.x.device)
        return result


def clip(parameters: Sequence[nn.Parameter], most: float | None) -> None:
    """As the loop does."""
    if most is not None:
        torch.nn.utils.clip_grad_norm_(parameters, most)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds, and what came of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, result


@dataclass(frozen=True)
class Added:
    """Bytes of tensors on a device."""

    most: int
    """At once while the work ran, over those before it."""
    kept: int
    """Left at its end, its result among them."""


def added_bytes(work: Callable[[], Any], device: torch.device) -> Added:
    """What `work` allocates.

    On a CPU by the profiler's record of every allocation and release. Releases of what was there before are not in it: on a CPU
    `work` should begin without gradients.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        result = work()
        added = Added(torch.cuda.max_memory_allocated(device) - before, torch.cuda.memory_allocated(device) - before)
    else:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            result = work()
        now = most = 0
        records = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
        for record in sorted(records, key=lambda event: event.start_ns()):
            now += record.nbytes()
            most = max(most, now)
        added = Added(most, now)
    del result
    return added


def live_bytes(device: torch.device) -> int:
    """Of all tensors on the device: on a CPU of those that Python knows, which without graphs and gradients is all."""
    gc.collect()
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    tensors = [item for item in gc.get_objects() if issubclass(type(item), Tensor) and item.device.type == "cpu"]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


@dataclass
class Row:
    """A case's figures at one way to choose the trained parameters."""

    case: Case
    training: Training
    passes: Passes
    held: int = 0
    """Bytes between steps."""
    steps: list[float] = field(default_factory=list)
    """Seconds, a repetition each."""
    bounds: list[float] = field(default_factory=list)
    peak: int = 0
    """Bytes, those held among them."""

    @property
    def ratio(self) -> float:
        """Step over bound."""
        return median(step / bound for step, bound in zip(self.steps, self.bounds, strict=True))

    def measure_peak(self, device: torch.device) -> None:
        """Of a step; where phases take turns of the second, beside what the first leaves."""

        def work() -> None:
            for _ in self.training.method.phases():
                self.training.take_step()

        self.peak = self.held + added_bytes(work, device).most
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """They are no part of what is held between steps."""
        for optimizer in self.training.method.optimizers().values():
            optimizer.zero_grad(set_to_none=True)


def measure(space: Space, params: str, cases: Sequence[Case], repetitions: int, encoder: tuple[str, str | None]) -> dict[str, Any]:
    """One way to choose the trained parameters: the parts' times and a row a case; the first is the plain one."""
    prepared(space, params, cases[0], encoder[1])  # what libraries take at their first use is nobody's
    rows = [prepared(space, params, case, encoder[1]) for case in cases]
    plain = rows[0]
    parts = Parts(plain.training, space, *encoder)
    parts.time()
    teacher, second = parts.teacher_bytes(), parts.second_graph_bytes()
    for row in rows:
        row.measure_peak(space.device)
    timings: list[dict[str, float]] = []
    for _ in range(repetitions):
        timings.append(parts.time())
        for row in rows:
            row.steps.append(timed(row.training.take_step, space.device)[0])
            row.bounds.append(sum(count * timings[-1][part] for part, count in row.passes.items()))
            row.forget_gradients()
    return {
        "space": space.name,
        "params": params,
        "network_parameters": sum(parameter.numel() for parameter in parts.teacher.parameters()),
        "parts_ms": {part: round(1e3 * median(timing[part] for timing in timings), 2) for part in timings[0]},
        "rows": [figures(row, plain, plain.peak + teacher + second) for row in rows],
    }


def prepared(space: Space, params: str, case: Case, encoder_weights: str | None) -> Row:
    """A training after its first step, which makes the optimisers' state."""
    configs = case.configs(space.size, encoder_weights)
    before = live_bytes(space.device)
    training = space.training(configs, params)
    training.take_step()
    row = Row(case, training, passes(configs, latent=space.autoencoder is not None))
    row.forget_gradients()
    row.held = live_bytes(space.device) - before
    return row


def figures(row: Row, plain: Row, sdft_bytes: int) -> dict[str, Any]:
    """For people and the result's file."""
    found = {
        "case": row.case.name,
        "step_ms": round(1e3 * median(row.steps), 2),
        "bound_ms": round(1e3 * median(row.bounds), 2),
        "ratio": round(row.ratio, 4),
        "ratio_to_plain": round(median(row.steps) / median(plain.steps), 3),
        "peak_mib": round(row.peak / MIB, 1),
        "peak_to_plain": round(row.peak / plain.peak, 4),
        "passes": dict(row.passes),
    }
    if row.case.name == "sdft":
        found["peak_to_bound"] = round(row.peak / sdft_bytes, 4)
    return found


def missed(group: Mapping[str, Any], device: str) -> Iterator[str]:
    """Targets that a group's rows miss."""
    for row in group["rows"]:
        where = f"{group['space']} {group['params']} {row['case']}"
        if row["ratio"] > MOST_OVER_BOUND[device]:
            yield f"{where}: a step takes {row['ratio']} of its parts' time, at most {MOST_OVER_BOUND[device]} is asked"
        if row["case"] == "ant" and row["peak_to_plain"] > MOST_ANT_MEMORY:
            yield f"{where}: {row['peak_to_plain']} of a plain step's memory, at most {MOST_ANT_MEMORY} is asked"
        if row.get("peak_to_bound", 0) > MOST_SDFT_MEMORY:
            yield f"{where}: {row['peak_to_bound']} of the memory that the teacher and a second pass explain, at most {MOST_SDFT_MEMORY}"


def show(group: Mapping[str, Any]) -> None:
    """A group's table."""
    print(f"\n{group['space']} {group['params']}: " + ", ".join(f"{part} {ms}" for part, ms in group["parts_ms"].items()), "(ms)")
    print(f"{'':24}{'step ms':>10}{'bound ms':>10}{'ratio':>8}{'to plain':>10}{'peak MiB':>10}{'to plain':>10}")
    for row in group["rows"]:
        times = f"{row['step_ms']:10.1f}{row['bound_ms']:10.1f}{row['ratio']:8.3f}{row['ratio_to_plain']:10.2f}"
        print(f"{row['case']:24}{times}{row['peak_mib']:10.1f}{row['peak_to_plain']:10.3f}", end="")
        print(f", {row['peak_to_bound']:.3f} of its bound" if "peak_to_bound" in row else "", flush=True)


def loss_of_a_step(training: Training) -> float:
    """Of the next one."""
    training.take_step()
    return training.read_losses()[-1]


def compiled_rows(size: Size, device: torch.device, train: TrainSpec, repetitions: int) -> Iterator[dict[str, Any]]:
    """torch.compile against eager, each backbone with plain fine-tuning and with ANT, whose ascent compiles another graph."""
    for name in ("pixel", "latent", "dit"):
        space = make_space(name, size, device, train)
        for case in EACH[:2]:
            torch.compiler.reset()
            configs = case.configs(size, None)
            eager, compiled = (space.training(configs, "full", compiled=flag) for flag in (False, True))
            losses = [(loss_of_a_step(eager), loss_of_a_step(compiled)) for _ in range(COMPILED_STEPS)]
            seconds = [tuple(timed(one.take_step, device)[0] for one in (eager, compiled)) for _ in range(repetitions)]
            row = {
                "space": name,
                "case": case.name,
                "eager_ms": round(1e3 * median(pair[0] for pair in seconds), 2),
                "compiled_ms": round(1e3 * median(pair[1] for pair in seconds), 2),
                "largest_loss_difference": max(abs(a - b) for a, b in losses),
                "losses": losses,
            }
            print({key: value for key, value in row.items() if key != "losses"}, flush=True)
            yield row


def run_steps(given: argparse.Namespace, device: torch.device, train: Callable[[Size], TrainSpec]) -> tuple[dict[str, Any], list[str]]:
    """All groups, and the targets they miss."""
    size = QUICK if given.quick else SIZES[device.type]
    groups = []
    with tempfile.TemporaryDirectory() as folder:
        encoder = ("digits", None) if given.quick else ("inception", inception_file(Path(folder)))
        for name, settings in (("pixel", given.params), ("latent", [p for p in given.params if p == "full"])):
            space = make_space(name, size, device, train(size))
            for params in settings:
                cases = EACH + MORE if params == "full" else EACH
                groups.append(measure(space, params, cases, given.repetitions, encoder))
                show(groups[-1])
    return {"batch": size.batch, "noise_steps": size.noise_steps, "groups": groups}, [
        text for group in groups for text in missed(group, device.type)
    ]


def run_compiled(given: argparse.Namespace, device: torch.device, train: Callable[[Size], TrainSpec]) -> tuple[dict[str, Any], list[str]]:
    """All backbones, and the targets they miss."""
    size = SIZES["cuda"] if device.type == "cuda" else COMPILED
    rows = list(compiled_rows(size, device, train(size), given.repetitions))
    return {"batch": size.batch, "rows": rows}, [
        f"{row['space']} {row['case']}: losses part by {row['largest_loss_difference']:.2g}, at most {MOST_LOSS_DIFFERENCE} is asked"
        for row in rows
        if row["largest_loss_difference"] > MOST_LOSS_DIFFERENCE
    ]


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(SIZES), default="cpu")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; one less than the cores keeps other work from the figures")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--params", nargs="+", choices=list(PARAMS), default=list(PARAMS))
    parser.add_argument("--quick", action="store_true", help="tiny networks: whether it runs; no time is judged, nothing is written")
    parser.add_argument("--compile", action="store_true")
    return parser.parse_args()


def main() -> int:
    """Measure, print and write results/step_cost*.json; 1 where a target is missed."""
    given = arguments()
    torch.set_num_threads(given.threads)
    device = torch.device(given.device)
    gc.freeze()  # what is imported stays: looking for garbage in it would take most of the time

    def train(size: Size) -> TrainSpec:
        return TrainSpec(batch_size=size.batch, micro_batch=size.batch, precision=given.precision, lr=1e-5)

    found, misses = (run_compiled if given.compile else run_steps)(given, device, train)
    gc.unfreeze()
    if given.quick:
        return 0
    print(*misses, sep="\n")
    marks = ["step_cost", *(["compile"] if given.compile else []), *(["cuda"] if device.type == "cuda" else [])]
    some = [] if given.params == list(PARAMS) else given.params
    name = "_".join([*marks, *(["bf16"] if given.precision == "bf16" else []), *some])
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    settings = {"gpu": gpu, "threads": given.threads, "precision": given.precision, "repetitions": given.repetitions}
    print(write_result(name, " ".join(["python", "bench/costs/step/step_cost.py", *sys.argv[1:]]), {**settings, **found, "missed": misses}))
    return int(bool(misses))


if __name__ == "__main__":
    sys.exit(main())
