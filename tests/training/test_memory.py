"""A GPU's memory that runs out underway, raised as PyTorch raises it by networks and optimisers of the tests' own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fewshot_ray.data.digits import digits
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.methods.phase import Batch, Objective, Phase
from fewshot_ray.models.memory import in_parts
from fewshot_ray.models.parameters import FullConfig, tune
from fewshot_ray.training.checkpoint import training_state
from fewshot_ray.training.group import Group
from fewshot_ray.training.loop import Training
from fewshot_ray.training.memory import GpuMemoryError, together
from tests.conftest import Workers
from tests.tiny_diffusion import tiny_backbone
from tests.training.toys import Toy, grey, squares, training


class Small:
    """A GPU with room for so many images."""

    def __init__(self) -> None:
        self.images = 100
        self.refused = 0

    def take(self, images: int) -> None:
        if images > self.images:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def denoiser(gpu: Small, group: Group | None = None, optimizer: Callable[..., Any] = torch.optim.AdamW) -> Training:
    backbone = tiny_backbone()
    tuned = tune(backbone.network, "full", FullConfig(), seed=0)
    tuned.network.register_forward_pre_hook(lambda network, inputs: gpu.take(len(inputs[0])))
    method = DiffusionMethod(backbone, tuned, optimizer(tuned.trained.values(), lr=1.0))
    return training(method, digits("shots").images, batch_size=5, lr=1e-3, group=group)


def same(one: Training, other: Training) -> bool:
    (tensors, info), (others, other_info) = (training_state(run, "") for run in (one, other))
    return tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors) and info == other_info


def test_a_step_is_repeated_in_smaller_micro_batches() -> None:
    """Oracle: a training whose micro-batch is set to 2 by hand before the fourth step: weights, average and moments to the last bit."""
    gpu = Small()
    run, by_hand = denoiser(gpu), denoiser(Small())
    for one in (run, by_hand):
        one.advance(3)
    assert run.micro_batch == 5
    gpu.images, by_hand.micro_batch = 2, 2
    for one in (run, by_hand):
        one.advance(6)
    assert (run.micro_batch, gpu.refused) == (2, 2)
    assert same(run, by_hand)
    assert run.take_remarks() == [
        f"the GPU's memory ran out at step 4: from there {now} images per pass instead of {before}, at the same global batch"
        for before, now in ((5, 3), (3, 2))
    ]
    assert run.take_remarks() == []


def test_one_image_is_too_many() -> None:
    """Oracle: by hand; what was trained before stays as it was, so that it can be saved."""
    gpu = Small()
    run, undisturbed = denoiser(gpu), denoiser(Small())
    run.advance(2)
    undisturbed.advance(2)
    gpu.images = 0
    with pytest.raises(GpuMemoryError, match=r"ran out at step 3, with one image at a time; .*train.params: lora") as caught:
        run.advance(4)
    assert "\n" not in str(caught.value)
    assert gpu.refused == 4  # 5, 3, 2 and 1 images
    undisturbed.micro_batch = 1
    assert same(run, undisturbed)


def test_images_that_a_model_takes_together() -> None:
    """Oracle: by hand; another micro-batch would be another training."""
    gpu = Small()

    def loss(w: Tensor, batch: Batch) -> Objective:
        gpu.take(len(batch.x_0))
        return squares(w, batch)

    method = Toy([0.5], loss)
    method.whole_batch = True
    run = training(method, grey(0, 60, 200, 255), lr=0.1)
    gpu.images = 2
    with pytest.raises(GpuMemoryError, match=r"takes a worker's images together; a smaller train.batch_size"):
        run.advance(1)


class TwoPhases(Toy):
    """The parameter is moved twice in a step, the second time by a loss that a small GPU refuses."""

    def __init__(self, gpu: Small) -> None:
        super().__init__([0.5], squares, torch.optim.Adam)
        self.gpu = gpu

    def phases(self) -> Sequence[Phase]:
        def second(batch: Batch) -> Objective:
            self.gpu.take(len(batch.x_0))
            return squares(2 * self.w, batch)

        return [Phase("first", [self.w], "toy", lambda batch: squares(self.w, batch)), Phase("second", [self.w], "toy", second)]


def test_a_phase_that_has_ended_is_not_repeated() -> None:
    """Oracle: the two updates of a training that is never refused; a sum of four numbers in another order differs by rounding alone."""
    small, large = Small(), Small()
    small.images = 1
    runs = [training(TwoPhases(gpu), grey(0, 60, 200, 255), lr=0.1) for gpu in (small, large)]
    losses = [run.advance(3) for run in runs]
    assert runs[0].micro_batch == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert runs[0].method.trained()["w"].item() == pytest.approx(runs[1].method.trained()["w"].item(), rel=1e-6)


class Greedy(torch.optim.Adam):
    """Runs out of memory in the middle of allocating its moments, once."""

    failed = False

    def step(self, closure: Any = None) -> Any:
        if not self.failed:
            self.failed = True
            parameter = self.param_groups[0]["params"][0]
            self.state[parameter] = {
                "step": torch.tensor(7.0),
                "exp_avg": torch.ones_like(parameter),
                "exp_avg_sq": torch.ones_like(parameter),
            }
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().step(closure)


def test_an_optimiser_without_room_for_its_moments() -> None:
    """Oracle: the undisturbed training, to the last bit."""
    runs = [training(Toy([0.5], squares, optimizer), grey(0, 60, 200, 255), lr=0.1) for optimizer in (Greedy, torch.optim.Adam)]
    for run in runs:
        run.advance(3)
    assert same(*runs)
    assert runs[0].micro_batch == 4  # smaller ones would not have helped


def test_an_average_without_room_for_the_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the undisturbed training, to the last bit, with its count of updates, which the warm-up of the decay depends on."""
    runs = [training(Toy([0.5], squares), grey(0, 60, 200, 255), lr=0.1) for _ in range(2)]
    runs[1].advance(3)
    real, failed = torch._foreach_sub, []

    def once(*args: Any, **options: Any) -> Any:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(*args, **options)

    monkeypatch.setattr(torch, "_foreach_sub", once)
    runs[0].advance(3)
    assert failed
    assert same(*runs)


def _first_is_small(images: int) -> tuple[int, list[Tensor]]:
    group, gpu = Group(), Small()
    run = denoiser(gpu, group, torch.optim.SGD)
    run.advance(2)
    gpu.images = images if group.rank == 0 else 100
    run.advance(4)
    return run.micro_batch, [parameter.detach().clone() for parameter in run.method.trained().values()]


def _first_has_no_room() -> str:
    group, gpu = Group(), Small()
    run = denoiser(gpu, group)
    gpu.images = 0 if group.rank == 0 else 100
    try:
        run.advance(1)
    except GpuMemoryError as error:
        return str(error)
    return ""


def test_the_workers_of_a_trial_agree(workers: Workers) -> None:
    """Oracle: one worker that nothing happens to; the other worker doesn't wait for ever, nor goes on with a batch of its own."""
    alone = denoiser(Small(), optimizer=torch.optim.SGD)
    alone.advance(4)
    for micro_batch, parameters in workers.run(_first_is_small, 1):
        assert micro_batch == 1
        for own, expected in zip(parameters, alone.method.trained().values(), strict=True):
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-5)
    assert len({*workers.run(_first_has_no_room)}) == 1


def test_the_machines_memory_is_another_matter() -> None:
    """Oracle: by hand; it is no property of the trial, so it's not halved away and not taken for the GPU's."""

    def loss(w: Tensor, batch: Batch) -> Objective:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        training(Toy([0.5], loss), grey(0, 255), lr=0.1).advance(1)


@pytest.mark.parametrize(("room", "sizes"), [(10, [4, 3]), (3, [4, 2, 2, 2, 1]), (1, [4, 2, 1, 1, 1, 1, 1, 1, 1])])
def test_parts_are_halved(room: int, sizes: list[int]) -> None:
    """Oracle: by hand, for 7 rows and at most 4 at once: each call's rows."""
    calls: list[int] = []
    gpu = Small()
    gpu.images = room

    def double(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        gpu.take(len(rows))
        return 2 * rows

    assert torch.cat(in_parts(double, torch.arange(7), 4)).tolist() == list(range(0, 14, 2))
    assert calls == sizes


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("shapes differ")])
def test_what_parts_do_not_help(error: RuntimeError) -> None:
    """Oracle: the error of a single row, or one of another kind at once."""
    calls: list[int] = []

    def fail(rows: Tensor) -> Tensor:
        calls.append(len(rows))
        raise error

    with pytest.raises(type(error), match=str(error)):
        in_parts(fail, torch.arange(3), 2)
    assert calls == ([2, 1] if isinstance(error, torch.OutOfMemoryError) else [2])


def test_measuring_without_room() -> None:
    """Oracle: by hand: one line that says when."""

    def fail() -> Callable[[], None]:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(GpuMemoryError, match="memory ran out while sampling, with one image at a time"):
        together(Group.alone(), "while sampling", fail)
    assert together(Group.alone(), "while sampling", lambda: nn.Identity) is nn.Identity
