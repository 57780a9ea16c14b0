"""Random numbers that are a function of (seed, step, purpose) alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts: the same parts give the same seed, in every process and on every machine."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The host's `tensor` on the device; copied to a GPU from pinned memory, so that the host doesn't wait for queued GPU work."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


class Randomness:
    """Draws for the *global* batch, so that neither resuming nor the number of workers changes them.

    The generators live on `device`: CPU and GPU runs draw different numbers. What the host decides by is drawn on the host, so that it
    never waits for a GPU.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.device = torch.device(device)
        self._kept: dict[tuple[int, str], Tensor] = {}

    def generator(self, step: int, purpose: str) -> torch.Generator:
        """A fresh generator for this step and purpose."""
        return torch.Generator(self.device).manual_seed(derived_seed(self.seed, step, purpose))

    def host_generator(self, step: int, purpose: str) -> torch.Generator:
        """The same on the host."""
        return torch.Generator().manual_seed(derived_seed(self.seed, step, purpose))

    def normal(self, step: int, purpose: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers for the global batch; `shape[0]` is the global batch size."""
        return self._once(step, purpose, lambda g: torch.randn(shape, generator=g, device=self.device))

    def integers(self, step: int, purpose: str, high: int, count: int) -> Tensor:
        """`count` integers in [0, high), one per image of the global batch."""
        return self._once(step, purpose, lambda g: torch.randint(high, (count,), generator=g, device=self.device))

    def uniform(self, step: int, purpose: str, count: int) -> Tensor:
        """`count` numbers in [0, 1), one per image of the global batch."""
        return self._once(step, purpose, lambda g: torch.rand(count, generator=g, device=self.device))

    def host_integers(self, step: int, purpose: str, high: int, count: int) -> Tensor:
        """As `integers`, on the host."""
        return self._once(step, purpose, lambda _: torch.randint(high, (count,), generator=self.host_generator(step, purpose)))

    def host_uniform(self, step: int, purpose: str) -> float:
        """A number in [0, 1) for the whole step."""
        return float(self._once(step, purpose, lambda _: torch.rand(1, generator=self.host_generator(step, purpose))))

    def dirichlet(self, step: int, purpose: str, alpha: float, entries: int, count: int) -> Tensor:
        """`[count, entries]` drawn from Dir(alpha, ..., alpha), a row per image of the global batch; float32, drawn in float64 on the CPU.

        By NumPy: with small alpha, gamma variates in float32 can all be 0.
        """

        def rows(_: torch.Generator) -> Tensor:
            drawn = np.random.default_rng(derived_seed(self.seed, step, purpose)).dirichlet([alpha] * entries, size=count)
            return on_device(torch.from_numpy(drawn).float(), self.device)

        return self._once(step, purpose, rows)

    def reseed_layers(self, step: int, rank: int, part: int) -> None:
        """Seed the noise that layers draw themselves (dropout): the one kind of randomness that depends on the number of workers."""
        torch.manual_seed(derived_seed(self.seed, step, "layers", rank, part))

    def _once(self, step: int, purpose: str, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        """The step's numbers for this purpose, drawn once and shared by its micro-batches."""
        if any(kept_step != step for kept_step, _ in self._kept):
            self._kept.clear()
        key = (step, purpose)
        if key not in self._kept:
            self._kept[key] = draw(self.generator(step, purpose))
        return self._kept[key]
