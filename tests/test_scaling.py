"""bench/costs/scaling: the model on paper against hand-computed numbers, its counts against a real step's, and a short measurement."""

import math
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.costs.scaling import model, presets, scaling
from fewshot_ray.models.backbone import Backbone
from tests.tiny_diffusion import tiny_unet

CPU = torch.device("cpu")


def cluster() -> Any:
    """Nodes of 8 at 100 bytes a second, 10 between them; hops of 1 s and 3 s."""
    return model.Cluster(8, 100.0, 10.0, 1.0, 3.0)


def instant() -> Any:
    return model.Cluster(8, math.inf, math.inf, 0.0, 0.0)


def work() -> Any:
    return model.Work(2.0, ((80.0, 1.0), (8.0, 0.5)), (model.Gather(5.0, None), model.Gather(3.0, 8, 0.25)))


@pytest.mark.parametrize(
    ("gpus", "summed", "gathered"),
    [
        (1, 0.0, 0.0),
        (2, 2 / 2 * 80 / 100 + 2, 5 / 100 + 1),
        (8, 1.4 + 14, 0.35 + 7),
        # two nodes: 2 x 7/8 x 80 bytes and 14 hops within, 2 x 1/2 x 80 and 2 hops between; of the rows 7 x 2 x 5 and 1 x 8 x 5
        (16, 1.4 + 14 + 8 + 6, 0.7 + 7 + 4 + 3),
        (32, 1.4 + 14 + 12 + 18, 1.4 + 7 + 12 + 9),
    ],
)
def test_collectives_by_hand(gpus: int, summed: float, gathered: float) -> None:
    """Oracle: 80 bytes summed and 5 a worker gathered, counted by hand."""
    assert model.sum_sec(80.0, gpus, cluster()) == pytest.approx(summed)
    assert model.gather_sec(5.0, gpus, cluster()) == pytest.approx(gathered)


def test_a_step_by_hand() -> None:
    """Oracle: 3 images of 2 s on 2 GPUs; sums of 80 and, every other step, 8 bytes; 3 x 5 bytes of rows, and 4 x 3 every fourth."""
    seconds = (0.8 + 2) + 0.5 * (0.08 + 2) + (0.15 + 1) + 0.25 * (0.12 + 1)
    assert model.communication_sec(work(), 3, 2, cluster()) == pytest.approx(seconds)
    assert model.weak_efficiency(work(), 3, 2, cluster()) == pytest.approx(6 / (6 + seconds))
    assert model.fixed_batch_efficiency(work(), 5, 2, cluster()) == pytest.approx(10 / (2 * (6 + seconds)))


def test_one_gpu_and_instant_collectives_lose_nothing() -> None:
    """Oracle: nothing is sent, or in no time; of a fixed batch only the uneven share is lost (40 images on 32 GPUs: two rounds)."""
    assert model.weak_efficiency(work(), 3, 1, cluster()) == 1
    assert model.fixed_batch_efficiency(work(), 40, 1, cluster()) == 1
    for gpus in (2, 8, 64, 4096):
        assert model.weak_efficiency(work(), 3, gpus, instant()) == 1
    assert model.fixed_batch_efficiency(work(), 40, 32, instant()) == 40 / 64
    assert model.fixed_batch_efficiency(work(), 40, 64, instant()) == 0


def test_more_gpus_are_never_more_efficient() -> None:
    """Oracle: monotone over powers of two, across the nodes' border, with hops or without."""
    for assumed in (cluster(), model.Cluster(8, 300e9, 12.5e9, 0.0, 0.0), model.Cluster()):
        shares = [model.weak_efficiency(work(), 3, 2**power, assumed) for power in range(15)]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[-1]


def test_breaks() -> None:
    """Oracle: by hand; the border itself is still worthwhile, and the search ends at the given most."""
    shares = {2: 0.9, 4: 0.8, 8: 0.79, 16: 0.95}
    assert model.breaks(shares.__getitem__) == 4
    assert model.breaks(lambda gpus: 1.0, 32) == 32
    assert model.breaks(lambda gpus: 0.5) == 1


def test_part_empty_nodes_are_refused() -> None:
    """Oracle: the message names the number and what is right."""
    with pytest.raises(ValueError, match="gpus=12: whole nodes of 8"):
        model.sum_sec(1.0, 12, cluster())


def test_architectures_have_the_published_sizes() -> None:
    """Oracle: parameters as the models' cards and papers give them, in millions."""
    with torch.device("meta"):
        made = {make: sum(p.numel() for p in make().network.parameters()) for make in (presets.celeba, presets.ldm)}
    assert made[presets.celeba] == 113_673_219
    assert round(made[presets.ldm] / 1e6) == 274


def tiny_source() -> Backbone:
    return Backbone(tiny_unet(), DDPMScheduler())


def test_counts_are_a_real_step_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: PyTorch's own counter over a real step of a tiny model, and the bytes of its real gradients and loss."""
    monkeypatch.setitem(presets.SOURCES, "google/ddpm-celebahq-256", tiny_source)
    _, document = next(presets.documents("ten-images"))
    step = presets.counted_step("ten-images", document)
    group = presets.Recorded(2)
    with presets.random_networks():
        made = presets.training(presets.compose(presets.resized(document, 80, 2)), CPU, group)
        with FlopCounterMode(display=False) as real:
            made.take_step()
    assert step.flops_per_image * 40 == pytest.approx(real.get_total_flops())
    gradients = [parameter.grad for parameter in made.method.trained().values()]
    assert step.reduced_bytes == sum(gradient.nbytes for gradient in gradients if gradient is not None) + 4
    assert step.reduced_bytes == 4 * step.trained_parameters + 4
    assert (step.batch, step.images, step.most_workers) == (40, 40, 32)
    assert presets.measured_step_sec(document, CPU, 1) > 0


def test_counting_leaves_pytorch_as_it_was() -> None:
    """Oracle: modules move and copy with values again."""
    with presets.without_values():
        nn.Linear(2, 2)
    layer = nn.Linear(2, 2)
    assert layer.double().weight.dtype == torch.float64
    assert layer.weight.detach()[0, 0].item() != 0.5


def test_mixdl_groups_bound_the_workers() -> None:
    """Oracle: MixDL compares 4 images with each other; the files' batches are 4 and 8."""
    found = {
        preset: presets.most_workers(document, document.tree["train"]["batch_size"])
        for name in ("mixdl-stylegan2", "mixdl-fastgan")
        for preset, document in presets.documents(name)
    }
    assert found == {"mixdl-stylegan2": 1, "mixdl-fastgan": 2}


def test_two_workers_reduce_their_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: one worker sends nothing; what two take is in a step's time; a row's bytes are the trained numbers' and the loss's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(scaling, "PARAMS", ("full",))
    one, two = scaling.measure(scaling.QUICK, (1, 2), 1, 1)
    assert (one["workers"], one["efficiency"], two["workers"]) == (1, 1, 2)
    assert one["communication_share"] < 0.01
    assert 0 < two["communication_share"] < 1
    trained = scaling.weak_training(scaling.QUICK, 1, "full").method.trained().values()
    assert one["reduced_bytes"] == two["reduced_bytes"] == 4 * sum(parameter.numel() for parameter in trained) + 4
