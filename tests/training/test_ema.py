"""The moving average's numbers, and that the weights come back."""

import pytest
import torch
from torch import nn

from fewshot_ray.training.ema import Ema


def run(decay: float, warmup: bool, values: list[float]) -> Ema:
    w = nn.Parameter(torch.zeros(1))
    ema = Ema({"w": w}, decay=decay, warmup=warmup)
    for value in values:
        w.data.fill_(value)
        ema.update()
    return ema


def test_warmup_by_hand() -> None:
    """Oracle: d = 2/11, 3/12, 4/13 at the first three updates."""
    a = 9 / 11 * 1.0
    a = 3 / 12 * a + 9 / 12 * 2.0
    a = 4 / 13 * a + 9 / 13 * 3.0
    ema = run(0.999, True, [1.0, 2.0, 3.0])
    assert ema.state()["w"].item() == pytest.approx(a, rel=1e-6)
    assert ema.updates == 3


def test_warmup_ends_at_the_decay() -> None:
    """Oracle: d = min(.25, (1 + n) / (10 + n)), which is .25 from n = 2 on."""
    a = 9 / 11 * 1.0
    for value in (2.0, 3.0, 4.0):
        a = 0.25 * a + 0.75 * value
    assert run(0.25, True, [1.0, 2.0, 3.0, 4.0]).state()["w"].item() == pytest.approx(a, rel=1e-6)


def test_without_warmup_the_first_update_counts_as_any_other() -> None:
    """Oracle: d = .9 throughout, so .9^300 of the source is left after 300 updates, .729 after three."""
    assert run(0.9, False, [1.0, 1.0, 1.0]).state()["w"].item() == pytest.approx(1 - 0.9**3, rel=1e-6)
    assert run(0.9999, False, [1.0] * 300).state()["w"].item() == pytest.approx(1 - 0.9999**300, rel=1e-3)


def test_decay_zero_is_the_parameters() -> None:
    """Oracle: the last value."""
    assert run(0.0, False, [1.0, 7.0]).state()["w"].item() == 7.0


@pytest.mark.parametrize("fails", [False, True])
def test_applied_gives_the_parameters_back_bit_for_bit(fails: bool) -> None:
    """Oracle: a clone taken before, also where the block raises."""
    network = nn.Linear(50, 50)
    parameters = dict(network.named_parameters())
    ema = Ema(parameters, decay=0.9, warmup=True)
    for parameter in parameters.values():
        parameter.data.add_(torch.randn_like(parameter))
    ema.update()
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    averages = {name: average.clone() for name, average in ema.state().items()}

    def block() -> None:
        with ema.applied():
            assert all(torch.equal(parameters[name], averages[name]) for name in parameters)
            assert not torch.equal(network.weight, before["weight"])
            if fails:
                raise ZeroDivisionError

    if fails:
        with pytest.raises(ZeroDivisionError):
            block()
    else:
        block()
    assert all(torch.equal(parameters[name], before[name]) for name in parameters)
    assert all(torch.equal(ema.state()[name], averages[name]) for name in parameters)


def test_a_loaded_state_goes_on_as_the_first_would() -> None:
    """Oracle: the uninterrupted average, bit for bit; the warm-up depends on the count of updates."""
    whole = run(0.999, True, [1.0, 2.0, 3.0])
    half = run(0.999, True, [1.0, 2.0])
    w = nn.Parameter(torch.zeros(1))
    resumed = Ema({"w": w}, decay=0.999, warmup=True)
    resumed.load({name: average.clone() for name, average in half.state().items()}, half.updates)
    w.data.fill_(3.0)
    resumed.update()
    assert torch.equal(resumed.state()["w"], whole.state()["w"])
