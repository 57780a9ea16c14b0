"""bench/costs/step/step_cost.py: its counts of passes against what a real step runs, and its memory tracker on known cases; no times."""

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bench.costs.step import step_cost
from bench.costs.step.cases import EACH, QUICK, Case
from bench.costs.step.passes import passes
from bench.costs.step.rows import prepared
from bench.costs.step.space import make_space
from bench.costs.step.time_and_memory import MIB, Added, added_bytes, live_bytes
from fewshot_ray.methods.diffusion import DiffusionMethod
from fewshot_ray.models.parameters import PARAMS
from fewshot_ray.spec.sections import TrainSpec

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _as_main_does() -> Iterator[None]:
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def spaces() -> dict[str, Any]:
    train = TrainSpec(batch_size=QUICK.batch, micro_batch=QUICK.batch)
    return {name: make_space(name, QUICK, CPU, train) for name in ("pixel", "latent")}


class Marked(TorchDispatchMode):
    """Counts the passes through networks by one convolution of each, as PyTorch runs it: with what graph, and for whose gradient."""

    def __init__(self, marks: dict[int, str]) -> None:
        super().__init__()
        self.marks = marks
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and args[1].data_ptr() in self.marks:
            graph = torch.is_grad_enabled() and any(arg is not None and arg.requires_grad for arg in args[:3])
            self.seen[f"{self.marks[args[1].data_ptr()]} {'graph' if graph else 'no graph'}"] += 1
        if func is torch.ops.aten.convolution_backward.default and args[2].data_ptr() in self.marks:
            to = "weights" if args[-1][1] else "input"
            self.seen[f"{self.marks[args[2].data_ptr()]} to {to}"] += 1
        return func(*args, **(kwargs or {}))


PART_OF = {
    "student graph": "forward",
    "student to weights": "backward to weights",
    "student to input": "backward to input",
    "teacher no graph": "teacher forward",
    "teacher graph": "teacher forward with graph",
    "teacher to input": "teacher backward to input",
    "classifier graph": "classifier forward",
    "classifier to input": "classifier backward to input",
    "psi graph": "psi forward",
    "psi no graph": "psi forward without graph",
    "psi to weights": "psi backward to weights",
    "psi to input": "psi backward to input",
    "decoder graph": "decode",
    "decoder no graph": "decode without graph",
    "decoder to input": "decode backward to input",
}


def first_convolution(network: nn.Module) -> Tensor:
    return next(module.weight for module in network.modules() if isinstance(module, nn.Conv2d))


def seen_passes(space: Any, configs: Any, params: str = "full") -> Counter[str]:
    """Of one real step."""
    teachers: list[nn.Module] = []
    training = space.training(configs, params, given=teachers)
    method = training.method
    assert isinstance(method, DiffusionMethod)
    marks = {first_convolution(teacher).data_ptr(): "teacher" for teacher in teachers}
    student = [
        module for name, module in method.tuned.network.named_modules() if name.endswith("conv_out") and isinstance(module, nn.Conv2d)
    ]
    marks[student[0].weight.data_ptr()] = "student"  # every gradient passes the last layer
    classifier = getattr(method.selector, "classifier", None)
    if classifier is not None:
        marks[first_convolution(classifier).data_ptr()] = "classifier"
    for adversary in method.adversaries.values():
        marks[first_convolution(adversary.network).data_ptr()] = "psi"
    if space.autoencoder:
        marks[first_convolution(space.autoencoder.model.decoder).data_ptr()] = "decoder"
    updates: Counter[str] = Counter()
    for name, optimizer in method.optimizers().items():
        part = "update" if name == "denoiser" else f"{name} update"
        optimizer.register_step_post_hook(lambda *_, part=part: updates.update([part]))
    mode = Marked(marks)
    with mode:
        training.take_step()
    return Counter({PART_OF[what]: count for what, count in mode.seen.items()}) + updates


CASES = {
    "finetune": {"finetune": {}},
    "ant": {"ant": {}},
    "ant, the source's error": {"ant": {"inner_network": "source"}},
    "ant without noise": {"ant": {"noise_steps": 0}},
    "ant without guidance": {"ant": {"guidance": 0.0}},
    "sdft": {"sdft": {}},
    "sdft without aux": {"sdft": {"lambda_aux": 0.0}},
    "ddpm_pa": {"ddpm_pa": {}},
    "sadm": {"sadm": {}},
    "sadm adversarial": {"sadm": {"warmup_steps": 0}},
    "all": {"ant": {}, "sdft": {}, "ddpm_pa": {}, "sadm": {"warmup_steps": 0}},
}


@pytest.mark.parametrize(
    ("space", "case"),
    [pytest.param(space, case) for space in ("pixel", "latent") for case in CASES],
)
def test_counts_are_a_real_step_s(spaces: dict[str, Any], space: str, case: str) -> None:
    """Oracle: the convolutions that PyTorch runs for each network, and the gradients it takes in them."""
    configs = Case(case, CASES[case]).configs(QUICK, None)
    assert seen_passes(spaces[space], configs) == passes(configs, latent=space == "latent")


def test_some_counts_by_hand() -> None:
    """Oracle: written out."""
    both = Case("", {"ant": {"noise_steps": 4}, "sdft": {}}).configs(QUICK, None)
    assert passes(both, latent=False) == {
        **{"forward": 1 + 4 + 1, "backward to input": 4, "backward to weights": 1 + 1, "update": 1},
        **{"classifier forward": 1, "classifier backward to input": 1, "teacher forward": 2},
    }


@pytest.mark.parametrize("params", sorted(set(PARAMS) - {"full"}))
def test_counts_hold_for_all_params(spaces: dict[str, Any], params: str) -> None:
    """Oracle: as above; in a frozen last layer a gradient to weights looks like one to the input, so the two are added."""
    configs = Case("", {"ant": {}, "sdft": {}}).configs(QUICK, None)
    counts = [passes(configs, latent=False), seen_passes(spaces["pixel"], configs, params)]
    for count in counts:
        count["backward"] = count.pop("backward to input", 0) + count.pop("backward to weights", 0)
    assert counts[0] == counts[1]


def test_allocations_on_known_cases() -> None:
    """Oracle: by hand: a and b together, then a dies and c comes; numbers of 1 MiB."""
    kept: list[Tensor] = []

    def work() -> None:
        a = torch.zeros(2 << 18)  # 2 MiB
        b = a.new_zeros(3 << 18)
        del a
        kept.append(b.new_zeros(4 << 18))
        del b
        kept.append(torch.zeros(1 << 18))

    added = added_bytes(work, CPU)
    assert (added.most, added.kept) == (7 * MIB, 5 * MIB)


def test_a_graph_is_what_it_saves() -> None:
    """Oracle: of `exp(exp(x))` autograd keeps both results, without a graph only the last is left; each takes 1 MiB."""
    x = torch.zeros(1 << 18, requires_grad=True)
    assert added_bytes(lambda: x.exp().exp(), CPU).kept == 2 * MIB
    with torch.no_grad():
        assert added_bytes(lambda: x.exp().exp(), CPU) == Added(most=2 * MIB, kept=MIB)


def test_live_bytes_counts_a_storage_once() -> None:
    """Oracle: a tensor of 1 MiB and a view of it, then neither."""
    before = live_bytes(CPU)
    tensor = torch.zeros(1 << 18)
    view = tensor[:10]
    assert live_bytes(CPU) - before == MIB
    del tensor, view
    assert live_bytes(CPU) == before


def test_held_is_weights_moments_and_average(spaces: dict[str, Any]) -> None:
    """Oracle: weights, Adam's two moments and the EMA are four copies, SDFT's teacher a fifth; a schedule's ten tables, and a float64."""
    tables = (10 * 4 + 8) * spaces["pixel"].source.schedule.timesteps
    weights = sum(parameter.nbytes for parameter in spaces["pixel"].source.network.parameters())
    plain, sdft = (prepared(spaces["pixel"], "full", case, None).held for case in (EACH[0], EACH[2]))
    assert plain == pytest.approx(4 * weights + tables, rel=0.05)
    assert sdft - plain == pytest.approx(weights, rel=0.05)


def test_quick_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: a line a case; a step's passes are all timed."""
    monkeypatch.setattr("sys.argv", ["step_cost.py", "--quick", "--repetitions", "1", "--params", "lora"])
    monkeypatch.setattr(step_cost, "EACH", EACH[:3])
    assert step_cost.main() == 0
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines() if line.startswith(("finetune", "ant", "sdft"))] == ["finetune", "ant", "sdft"]


def test_missed_targets_are_said_and_end_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Oracle: by hand; the result's file is not written here."""
    good = {"case": "ant", "ratio": 1.15, "peak_to_plain": 1.2}
    slow, large = good | {"ratio": 1.16}, good | {"peak_to_plain": 1.21}
    taught = {"case": "sdft", "ratio": 1.0, "peak_to_plain": 2.0, "peak_to_bound": 1.02}
    group = {"space": "pixel", "params": "full", "rows": [good, slow, large, taught]}
    assert len(list(step_cost.missed(group, "cpu"))) == 3
    assert len(list(step_cost.missed({**group, "rows": [good]}, "cuda"))) == 1
    written: dict[str, Any] = {}
    monkeypatch.setattr(step_cost, "write_result", lambda name, command, figures: written.update(figures, name=name))
    monkeypatch.setattr("sys.argv", ["step_cost.py"])
    for misses in ([], ["too slow"]):
        monkeypatch.setattr(step_cost, "run_steps", lambda *_, misses=misses: ({"groups": []}, misses))
        assert step_cost.main() == len(misses)
        assert written["missed"] == misses
        assert written["name"] == "step_cost"
        assert "\n".join(misses) in capsys.readouterr().out
