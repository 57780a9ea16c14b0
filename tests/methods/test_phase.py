import pytest
import torch

from fewshot_ray.methods.phase import Objective, Phase, Weighted, always


def test_terms_are_collected_under_their_names() -> None:
    """Oracle: the parts that went in."""
    a, b = torch.ones(3), torch.zeros(2)
    terms = Weighted()
    terms.add(Objective({"a": a}, {"a": 1.0}))
    terms.add(Objective({"b": b}, {"b": 0.5, "left_out": 2.0}))
    objective = terms.objective()
    assert objective.per_sample["a"] is a
    assert objective.per_sample["b"] is b
    assert (objective.weight["a"], objective.weight["b"]) == (1.0, 0.5)


def test_a_name_taken_twice_is_refused() -> None:
    """Oracle: two losses under one name would hide one of them."""
    terms = Weighted()
    terms.add(Objective({"a": torch.ones(1)}, {"a": 1.0}))
    with pytest.raises(ValueError, match="two loss terms are called a"):
        terms.add(Objective({"a": torch.ones(1)}, {"a": 1.0}))


def test_a_phase_is_active_in_every_step_unless_it_says_otherwise() -> None:
    """Oracle: the documented default."""
    phase = Phase("denoiser", [], "adam", lambda context: Objective({}, {}))
    assert phase.active is always
    assert all(phase.active(step) for step in range(5))
    assert phase.gradient_scale == 1.0
