"""Batches are a function of (seed, step), whole passes over the images, shared out among workers."""

import pytest
import torch

from fewshot_ray.training.batches import Batches
from tests.training.toys import Worker

IMAGES = torch.arange(7 * 1 * 2 * 3, dtype=torch.uint8).view(7, 1, 2, 3)


def batches(batch_size: int, seed: int = 0, flip: bool = False) -> Batches:
    return Batches(IMAGES, batch_size, seed=seed, flip=flip, device="cpu")


@pytest.mark.parametrize("batch_size", [1, 5, 7, 16])
def test_each_pass_sees_every_image_once(batch_size: int) -> None:
    """Oracle: seven steps are a whole number of passes, and each stretch of seven images holds all of them."""
    seen = torch.cat([batches(batch_size).indices(step) for step in range(7)])
    assert len(seen) == 7 * batch_size
    assert all(sorted(part.tolist()) == list(range(7)) for part in seen.split(7))
    assert batch_size < 5 or len({tuple(part.tolist()) for part in seen.split(7)}) > 1


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    """Oracle: another object, asked in another order."""
    first, second = batches(5, flip=True), batches(5, flip=True)
    forward = [first.micro_batches(step, Worker(), 5)[0] for step in range(6)]
    backward = [second.micro_batches(step, Worker(), 5)[0] for step in reversed(range(6))][::-1]
    assert all(torch.equal(a.x_0, b.x_0) for a, b in zip(forward, backward, strict=True))
    assert [batches(5, seed=1).indices(step).tolist() for step in range(3)] != [first.indices(step).tolist() for step in range(3)]


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("micro_batch", [1, 2, 5])
def test_workers_and_micro_batches_share_out_the_same_images(size: int, micro_batch: int) -> None:
    """Oracle: the whole batch of one worker; flips go with the image's position."""
    whole = batches(5, flip=True).micro_batches(3, Worker(), 5)[0]
    x_0 = torch.full_like(whole.x_0, torch.nan)
    for rank in range(size):
        for part in batches(5, flip=True).micro_batches(3, Worker(rank, size), micro_batch):
            assert len(part.x_0) == len(part.positions) <= micro_batch
            assert (part.positions % size == rank).all()
            assert (part.global_size, part.step) == (5, 3)
            x_0[part.positions] = part.x_0
    assert torch.equal(x_0, whole.x_0)


def test_a_worker_without_images_gets_no_micro_batch() -> None:
    """Oracle: two images over three workers; a network refuses empty input."""
    counts = [[len(part.x_0) for part in batches(2).micro_batches(0, Worker(rank, 3), 1)] for rank in range(3)]
    assert counts == [[1], [1], []]


def test_about_half_of_the_images_are_mirrored() -> None:
    """Oracle: each image is itself or its mirror; 400 draws give 200 mirrored within four standard deviations."""
    flipped = 0
    for step in range(100):
        [part] = batches(4, flip=True).micro_batches(step, Worker(), 4)
        [plain] = batches(4).micro_batches(step, Worker(), 4)
        for image, original in zip(part.x_0, plain.x_0, strict=True):
            is_flipped = not torch.equal(image, original)
            assert torch.equal(image, original.flip(-1) if is_flipped else original)
            flipped += is_flipped
    assert abs(flipped - 200) < 40


def test_images_are_in_the_models_range() -> None:
    """Oracle: 0 is -1, 255 is 1."""
    extremes = Batches(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), 2, seed=0, flip=False, device="cpu")
    assert sorted(extremes.upright.mean.flatten().tolist()) == [-1, 1]
