"""A step's parts, each run and timed alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.costs.step.space import Ready, Space
from bench.costs.step.time_and_memory import added_bytes, timed
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.draw import frozen, mean_square
from fewshot_ray.metrics.encoders import load_encoder
from fewshot_ray.models.classifier import NoiseAwareClassifier
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training


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

        def update() -> None:
            clip(self.trained, config.gradient_clip)
            optimizer.step()
            self.training.ema.update()

        self._timed("update", update)
        optimizer.zero_grad(set_to_none=True)

    def _time_psi_update(self) -> None:
        with self._autocast():
            loss = self.psi(self.images).square().mean()
        self._timed("psi backward to weights", lambda: torch.autograd.backward(loss, inputs=self.psi_parameters))

        def update() -> None:
            clip(self.psi_parameters, 1.0)
            self.psi_optimizer.step()

        self._timed("psi update", update)
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
