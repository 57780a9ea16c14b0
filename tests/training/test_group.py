"""Sums, minima and rows over one worker and over two."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from fewshot_ray.training import group as group_module
from fewshot_ray.training.group import Group
from tests.conftest import Workers

CPU = torch.device("cpu")


def test_one_worker_is_alone() -> None:
    """Oracle: everything is its own."""
    group = Group()
    tensor = torch.tensor([1.0, 2.0])
    group.sum_([tensor])
    assert (group.rank, group.size) == (0, 1)
    assert tensor.tolist() == [1.0, 2.0]
    assert group.own(torch.arange(3)).tolist() == [0, 1, 2]
    assert group.gather_rows(tensor, 2) is tensor
    assert group.smallest(4, CPU) == 4
    assert group.first_of(None) is None
    assert group.first_of("no model here") == "no model here"


def _sums(bucket_numbers: int) -> tuple[list[Any], int]:
    group_module.BUCKET_NUMBERS = bucket_numbers
    reduces = []
    all_reduce = dist.all_reduce
    dist.all_reduce = lambda flat, *args, **options: (reduces.append(flat.numel()), all_reduce(flat, *args, **options))[1]
    group = Group()
    factor = group.rank + 1
    tensors = [torch.full((2, 3), 1.0 * factor), torch.full((4,), 10.0 * factor), torch.full((1,), 5 * factor), torch.tensor(7.0 * factor)]
    try:
        group.sum_(tensors)
    finally:
        dist.all_reduce = all_reduce
    return [tensor.tolist() for tensor in tensors], len(reduces)


@pytest.mark.parametrize(("bucket_numbers", "reduces"), [(6_250_000, 3), (8, 4), (1, 4)])
def test_sums_in_buckets(workers: Workers, bucket_numbers: int, reduces: int) -> None:
    """Oracle: 1 + 2 times each value, on both; a bucket holds one dtype and no more numbers than allowed (or one tensor)."""
    for values, calls in workers.run(_sums, bucket_numbers):
        assert values == [[[3.0] * 3] * 2, [30.0] * 4, [15], 21.0]
        assert calls == reduces


def _rows(total: int) -> list[Any]:
    group = Group()
    rows = torch.arange(2 * total).view(total, 2)
    own = group.own(torch.arange(total))
    gathered = [group.gather_rows(part[own], total).tolist() for part in (rows.float(), rows.to(torch.uint8))]
    return [rows.tolist(), *gathered]


@pytest.mark.parametrize("total", [1, 2, 5])
def test_rows_come_back_in_global_order(workers: Workers, total: int) -> None:
    """Oracle: the rows before they were shared out; with one row, the second worker has none."""
    for rows, as_float, as_bytes in workers.run(_rows, total):
        assert as_float == rows
        assert as_bytes == rows


def _smallest() -> int:
    group = Group()
    return group.smallest(10 + group.rank, CPU)


def test_the_smallest_of_both(workers: Workers) -> None:
    """Oracle: 10 and 11."""
    assert workers.run(_smallest) == [10, 10]


def _said(texts: list[str | None]) -> str | None:
    group = Group()
    return group.first_of(texts[group.rank])


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([None, None], None),
        (["shots/Übung.png: no image", None], "shots/Übung.png: no image"),
        ([None, "the second"], "the second"),
        (["the first", "the second"], "the first"),
        (["", "the second"], ""),
        (["a name that is no text: \udcff", None], "a name that is no text: \\udcff"),
    ],
)
def test_what_the_first_that_says_something_says(workers: Workers, texts: list[str | None], expected: str | None) -> None:
    """Oracle: by hand, the same on both."""
    assert workers.run(_said, texts) == [expected, expected]
