"""bench/search/scale.py: a sweep without Ray and without training."""

from __future__ import annotations

import math

from bench.search.scale import simulated


def test_a_sweep_is_simulated_and_both_samplers_are_asked_after_it() -> None:
    """Oracle: by hand. Each of 12 trials is proposed, evaluated four times and ended."""
    figures = simulated(12, workers=3)
    assert figures["events"] == 12 * (1 + 4 + 1)
    assert all(math.isfinite(figure) and figure >= 0 for figure in figures.values())
    assert figures["ms_of_an_ask_after_them"] > 0
    assert figures["ms_of_optunas_ask_after_them"] > 0
    assert figures["write_bytes_per_trial"] > 0
