"""The workers of a trial, and the collective operations that training and evaluation use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

BUCKET_NUMBERS = 6_250_000  # 25 MB of float32, DDP's default bucket


@cache
def _hosts(world: object) -> Any:
    """Of a process group: one of the same workers that reduces tensors in the hosts' memory, as NCCL doesn't."""
    return world if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


class Group:
    """The workers that share a trial; a single one, and all operations local, where torch.distributed isn't initialised."""

    def __init__(self) -> None:
        active = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if active else 0
        self.size = dist.get_world_size() if active else 1

    @classmethod
    def alone(cls) -> Group:
        """A group of this worker only."""
        group = cls()
        group.rank, group.size = 0, 1
        return group

    def own(self, positions: Tensor) -> Tensor:
        """This worker's part of global positions: `rank::size`."""
        return positions[self.rank :: self.size]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """All-reduce in place, in buckets of one dtype and about 25 MB."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        for tensor in tensors:
            if bucket and (bucket[0].dtype != tensor.dtype or sum(t.numel() for t in bucket) + tensor.numel() > BUCKET_NUMBERS):
                self._sum_bucket(bucket)
                bucket = []
            bucket.append(tensor)
        if bucket:
            self._sum_bucket(bucket)

    def _sum_bucket(self, bucket: Sequence[Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        dist.all_reduce(flat)
        for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def smallest(self, value: int, device: torch.device) -> int:
        """The smallest of the workers' values."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], device=device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return int(tensor.item())

    def any(self, own: bool) -> bool:
        """Whether it holds on any worker. Host to host: no worker waits for its GPU."""
        if self.size == 1:
            return own
        flag = torch.tensor([int(own)])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=_hosts(dist.group.WORLD))
        return bool(flag.item())

    def wait_for_all(self, device: torch.device) -> None:
        """Block until every worker has called this."""
        self.smallest(0, device)

    def gather_rows(self, own: Tensor, total: int) -> Tensor:
        """All rows `[total, ...]`, in global order, from every worker's `rank::size` part; the same on every worker."""
        if self.size == 1:
            return own
        most = math.ceil(total / self.size)
        # Gloo, which workers that share a GPU use, gathers on the CPU only.
        device = torch.device("cpu") if dist.get_backend() == "gloo" else own.device
        padded = torch.zeros((most, *own.shape[1:]), dtype=own.dtype, device=device)
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:total].to(own.device)

    def first_of(self, own: str | None) -> str | None:
        """The value of the first worker whose value isn't None; the same on every worker."""
        if self.size == 1:
            return own
        # As bytes: torch.distributed's functions for objects unpickle, so that anyone who reached its ports could run code here.
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
        text = b"" if own is None else own.encode("utf-8", "backslashreplace")
        lengths = self.gather_rows(torch.tensor([-1 if own is None else len(text)], device=device), self.size).tolist()
        first = next((rank for rank, length in enumerate(lengths) if length >= 0), None)
        if first is None:
            return None
        said = torch.tensor(list(text if self.rank == first else bytes(lengths[first])), dtype=torch.uint8, device=device)
        dist.broadcast(said, src=first)
        return bytes(said.tolist()).decode()
