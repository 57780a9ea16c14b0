"""bench/claims.py: its statistics, who is compared with whom, a small run, and the page."""

import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from fewshot_ray.errors import UserError

BENCH = Path(__file__).parents[1] / "bench"
MODULES = ("intervals", "claims_arms", "claims_trials", "claims_comparisons", "claims_page", "claims")
MACHINE = {"date": "2000-01-01", "cores": 2, "cpu": "a processor", "torch": "2.0"}


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """The bench's modules by name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCH)
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in MODULES})
        for name in MODULES:
            del sys.modules[name]


def trial(lr: float, setting: int, losses: list[float], kids: list[float] | None = None) -> dict[str, Any]:
    """A record with an evaluation every 10 steps."""
    kids = kids or losses
    measured = [every_measure(loss, kid) for loss, kid in zip(losses, kids, strict=True)]
    evaluations = [{"step": 10 * number, **values} for number, values in enumerate(measured, start=1)]
    return {"lr": lr, "setting": setting, "training_seed": setting, "cpu_sec": 2.0 * lr, "evaluations": evaluations}


def every_measure(loss: float, kid: float = 1.0) -> dict[str, float]:
    others = dict.fromkeys(("pairwise_distance", "pairwise_distance_pixels", "intra_distance", "memorisation", "memorisation_pixels"), 0.5)
    return {"holdout_loss": loss, "kid": kid, "kid_pixels": kid / 100, **others}


def records(plain_test: dict[str, float], method_test: dict[str, float]) -> dict[str, Any]:
    """One seed of plain and sdft: two learning rates, two settings, two evaluations; test losses by `index@step`."""
    plain = [trial(1, 0, [5, 4], [1, 9]), trial(1, 1, [6, 3], [8, 2]), trial(2, 0, [2, 7], [7, 7]), trial(2, 1, [8, 8], [6, 6])]
    method = [trial(1, 0, [5, 5]), trial(1, 1, [1, 6]), trial(2, 0, [9, 4]), trial(2, 1, [9, 9])]
    sides = {"plain": (plain, plain_test), "sdft": (method, method_test)}
    found: dict[str, Any] = {}
    for arm, (trials, test) in sides.items():
        measured = {key: every_measure(loss) for key, loss in test.items()}
        found[arm] = {"arm": arm, "trials": trials, "test": measured, "images": {"shots": 10, "validation": 200, "test": 587}}
    found["plain"]["test"]["source"] = every_measure(9.0)
    return found


PLAIN_TEST = {"2@10": 1.0, "1@20": 2.0, "1@10": 3.0, "0@20": 4.0, "2@20": 5.0}


def test_paired_interval_is_scipy_s(bench: Any) -> None:
    """Oracle: SciPy's interval of the mean; by hand for 1, 2, 3: 2 -+ 4.303 / sqrt(3)."""
    differences = np.random.default_rng(0).normal(0.3, 1, size=5)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = bench.intervals.paired(differences.tolist())
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((differences.mean(), low, high))
    assert bench.intervals.paired([1, 2, 3])["low"] == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert math.isinf(bench.intervals.paired([1])["high"])


@pytest.mark.parametrize(
    ("low", "high", "if_min", "if_max"),
    [
        (-2, -1, "better", "worse"),
        (1, 2, "worse", "better"),
        (-1, 1, "no difference shown", "no difference shown"),
        (0, 1, "no difference shown", "no difference shown"),
        (0, 0, "no difference shown", "no difference shown"),
    ],
)
def test_verdict(bench: Any, low: float, high: float, if_min: str, if_max: str) -> None:
    """Oracle: by hand, in both directions; an interval that touches zero shows nothing."""
    assert [bench.intervals.verdict({"low": low, "high": high}, direction) for direction in ("min", "max")] == [if_min, if_max]


def test_sides_of_a_comparison(bench: Any) -> None:
    """Oracle: by hand from the validation values in `records`."""
    c, one = bench.claims_comparisons, records(PLAIN_TEST, {"1@10": 1.5, "2@20": 2.5})
    chosen = {moment: c.winner(one["sdft"], "holdout_loss", moment) for moment in ("best", "last")}
    assert [(found["lr"], found["setting"], found["step"]) for found in chosen.values()] == [(1, 1, 10), (2, 0, 20)]
    for question, moment, expected in (
        ("tuned", "best", 1.0),  # plain's lowest loss is 2, at 2@10
        ("tuned", "last", 2.0),  # its lowest last loss is 3, at 1@20
        ("matched", "best", 2.0),  # of its trial 1 (lr 1, second seed) the lower is the second
        ("matched", "last", 5.0),  # of its trial 2 the last
    ):
        other = c.control(one["plain"], chosen[moment], "holdout_loss", moment, question)
        assert other["test"]["holdout_loss"] == expected, (question, moment)
    assert bench.claims_trials.choose(one["plain"]["trials"], "kid", "best") == (0, 10)
    table = c.comparisons([one, records({**PLAIN_TEST, "2@10": 1.2}, {"1@10": 1.5, "2@20": 2.5})], ["sdft"])
    assert table["tuned/best"]["sdft"]["holdout_loss"]["difference"] == pytest.approx((0.5 + 0.3) / 2)
    assert table["matched/last"]["sdft"]["holdout_loss"] == {"difference": -2.5, "low": -2.5, "high": -2.5, "verdict": "better"}


def test_settings_are_judged_where_nothing_is_chosen(bench: Any) -> None:
    """Oracle: setting 1 ends at 5 and 4 against plain's 4 and 7: -1 in the mean over the learning rates."""
    by_seed = [records(PLAIN_TEST, {})] * 2
    first, second = bench.claims_comparisons.settings_table(by_seed, bench.claims_arms.DIGITS, ["sdft"])["sdft"]
    assert first["holdout_loss"]["difference"] == pytest.approx(-1)
    assert second["holdout_loss"]["difference"] == pytest.approx((6 - 3 + 9 - 8) / 2)


def test_guidance_is_not_judged_by_the_loss_and_psi_not_by_itself(bench: Any) -> None:
    """Oracle: by hand, for every arm."""
    arms = bench.claims_arms
    by_name = {measure.name: measure for measure in arms.MEASURES}
    assert [arm for arm in arms.DIGITS.arms if not arms.judged(arm, by_name["holdout_loss"])] == ["ant_guided"]
    assert all(arms.judged(arm, by_name["kid"]) for arm in arms.DIGITS.arms)
    assert arms.criteria("ant_guided") == ("kid",)
    assert [arm for arm in arms.DIGITS.arms if arms.graded_by_psi(arm, by_name["kid"])] == ["sadm", "ant+sdft+sadm"]
    assert not any(arms.graded_by_psi("sadm", by_name[name]) for name in ("holdout_loss", "kid_pixels"))
    for claim in bench.claims_page.CLAIMS:
        assert not any(arms.graded_by_psi(claim.arm, by_name[name]) for name in claim.measures), claim
        assert all(arms.judged(claim.arm, by_name[name]) for name in claim.measures), claim


def test_every_trial_is_valid_and_budgets_are_equal(bench: Any) -> None:
    """Oracle: the checks that a run's file goes through; as many settings everywhere."""
    for benchmark in bench.claims_arms.BENCHMARKS.values():
        assert {len(settings) for settings in benchmark.arms.values()} == {2}
        for arm, settings in benchmark.arms.items():
            for setting in settings:
                try:
                    bench.claims_arms.trial_spec(benchmark, 0, setting.method, 1e-4, training_seed=7, sampled=True)
                except UserError as error:
                    pytest.fail(f"{benchmark.name}, {arm}: {error}")


def test_a_small_run(bench: Any, tmp_path: Path) -> None:
    """Oracle: by hand what is evaluated and measured; the controls share the method's training seeds; pixels in a formula of its own."""
    digits = bench.claims.quick(bench.claims_arms.DIGITS)
    plain, sadm = (bench.claims_trials.run_arm(digits, arm, 1, str(tmp_path)) for arm in ("plain", "sadm"))
    assert [one["training_seed"] for one in plain["trials"]] == [one["training_seed"] for one in sadm["trials"]] == [100, 101]
    names = {measure.name for measure in bench.claims_arms.MEASURES}
    for one, everywhere in ((plain, True), (sadm, False)):
        assert [evaluation["step"] for evaluation in one["trials"][0]["evaluations"]] == [2, 4]
        assert [names <= set(evaluation) for evaluation in one["trials"][1]["evaluations"]] == [everywhere, True]
        assert all(names <= set(values) and all(map(math.isfinite, values.values())) for values in one["test"].values())
    assert sadm["images"] == {"shots": 10, "validation": 200, "test": 587}
    assert {"source", "0@4", "1@4"} <= set(plain["test"])
    one = {"plain": plain, "sadm": sadm}
    assert set(bench.claims_comparisons.comparisons([one, one], ["sadm"])) == set(bench.claims_page.QUESTIONS)
    pixels = bench.claims_trials.PixelExtractor().features(torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8))
    torch.testing.assert_close(pixels, torch.tensor([[0, 1, 0.2, 0.4]]))


def small_result(bench: Any, plain_test: list[dict[str, float]], method_test: dict[str, float]) -> dict[str, Any]:
    by_seed = [records(one, method_test) for one in plain_test]
    c, digits = bench.claims_comparisons, bench.claims_arms.DIGITS
    return {
        "benchmark": "digits",
        "command": "python bench/claims.py",
        "machine": MACHINE,
        "seeds": len(by_seed),
        "processes": 2,
        "trials": 8,
        "wall_sec": 60.0,
        "cpu_sec": 90.0,
        "protocol": bench.claims.protocol(digits, by_seed[0]),
        "arms": bench.claims_page.arms_in_words(digits, ["sdft"]),
        "levels": c.levels(by_seed),
        "comparisons": c.comparisons(by_seed, ["sdft"]),
        "settings": c.settings_table(by_seed, digits, ["sdft"]),
        "winners": c.winners(by_seed, ["sdft"]),
        "relative_cost": c.relative_cost(by_seed, ["sdft"]),
    }


def test_page(bench: Any) -> None:
    """Oracle: the figures by hand; equal measures are not confirmed, and the emoji part says that it wasn't run."""
    result = small_result(bench, [PLAIN_TEST, {**PLAIN_TEST, "2@10": 1.2}], {"1@10": 1.5, "2@20": 2.5})
    text = bench.claims_page.page({"digits": result})
    assert "SDFT's claim that distilling from the source counters overfitting isn't confirmed here. |" in text
    assert "ANT's claim" not in text  # it isn't among the arms
    assert "+0.4<br>(-0.871 .. +1.67)<br>no difference shown |" in text
    assert "-2.5<br>(-2.5 .. -2.5)<br>**better** |" in text
    assert "each with 2 settings" in text
    assert "1.0 (`sdft`)" in text
    assert "1.5 minutes of CPU time" in text
    assert "| `sdft` | 1, 2, 10 | 1, 2, 10 |" in text
    assert "Needs a GPU; not run." in text
    assert "python bench/claims.py --benchmark emoji" in text


def test_claims_in_words(bench: Any) -> None:
    """Oracle: by hand; confirmed needs every measure better at the tuned best checkpoint, whatever the others say."""
    page: ModuleType = bench.claims_page
    claim = page.Claim("X's", "x", "it helps", ("kid", "kid_pixels"))
    for verdicts, opening in (
        (("better", "better"), "**X's claim that it helps is confirmed here.**"),
        (("better", "no difference shown"), "X's claim that it helps isn't confirmed here."),
        (("worse", "worse"), "X's claim that it helps isn't confirmed here: worse than plain fine-tuning."),
    ):
        cells = {
            name: {"difference": 1.0, "low": -1.0, "high": 3.0, "verdict": verdict}
            for name, verdict in zip(claim.measures, verdicts, strict=True)
        }
        elsewhere = {name: {**cells[name], "verdict": "better"} for name in claim.measures}
        result = {"comparisons": {"tuned/best": {"x": cells}, "tuned/last": {"x": elsewhere}}, "settings": {"x": [elsewhere, cells]}}
        assert page.verdict_on(claim, result) == opening
        seen = page.seen(claim, result)
        assert f"**KID, pixels**: {verdicts[1]}, +1 (-1 .. +3)" in seen
        assert ("each at its own learning rate, equal steps: better" in seen) == (verdicts[1] != "better")
        assert seen.endswith("by themselves: better (2)." if verdicts[1] == "better" else f"by themselves: better (1), {verdicts[1]} (1).")
    assert page.number(2.6e-19) == "0"
