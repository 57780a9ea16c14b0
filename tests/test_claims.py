"""bench/claims/claims.py: its statistics, who is compared with whom, a small run, and the page."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from bench.claims import arms, biased, biased_page, claims, comparisons, gans, gans_page, intervals, page, trials
from fewshot_ray.errors import UserError
from fewshot_ray.metrics.extractors import load_extractor
from fewshot_ray.search import paired

MACHINE = {"date": "2000-01-01", "cores": 2, "cpu": "a processor", "torch": "2.0"}


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
    for arm, (tried, test) in sides.items():
        measured = {key: every_measure(loss) for key, loss in test.items()}
        found[arm] = {"arm": arm, "trials": tried, "test": measured, "images": {"shots": 10, "validation": 200, "test": 587}}
    found["plain"]["test"]["source"] = every_measure(9.0)
    return found


PLAIN_TEST = {"2@10": 1.0, "1@20": 2.0, "1@10": 3.0, "0@20": 4.0, "2@20": 5.0}


def test_paired_interval_is_scipy_s() -> None:
    """Oracle: SciPy's interval of the mean; by hand for 1, 2, 3: 2 -+ 4.303 / sqrt(3)."""
    differences = np.random.default_rng(0).normal(0.3, 1, size=5)
    low, high = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    found = intervals.paired(differences.tolist(), "min")
    assert (found["difference"], found["low"], found["high"]) == pytest.approx((differences.mean(), low, high))
    assert intervals.paired([1, 2, 3], "min")["low"] == pytest.approx(2 - 4.30265 / math.sqrt(3), abs=1e-5)
    assert math.isinf(intervals.paired([1], "min")["high"])


@pytest.mark.parametrize(
    ("differences", "if_min", "if_max"),
    [
        ((-2.1, -2.0, -1.9), "better", "worse"),
        ((2.1, 2.0, 1.9), "worse", "better"),
        ((-1, 1, 0.1), "no difference shown", "no difference shown"),
        ((0, 0, 0), "no difference shown", "no difference shown"),
        ((5, 4), "no verdict: fewer than three seeds", "no verdict: fewer than three seeds"),
        ((1, 1, 1), "no verdict: the same difference on every seed", "no verdict: the same difference on every seed"),
        (
            (0.9 - 0.8, 0.3 - 0.2, 0.8 - 0.7),
            "no verdict: the same difference on every seed",
            "no verdict: the same difference on every seed",
        ),
    ],
)
def test_verdict(differences: tuple[float, ...], if_min: str, if_max: str) -> None:
    """Oracle: by hand, in both directions; an interval that holds zero shows nothing, nor does one without a width."""
    assert [intervals.paired(differences, direction)["verdict"] for direction in ("min", "max")] == [if_min, if_max]


def test_sides_of_a_comparison() -> None:
    """Oracle: by hand from the validation values in `records`."""
    one = records(PLAIN_TEST, {"1@10": 1.5, "2@20": 2.5})
    chosen = {moment: comparisons.winner(one["sdft"], "holdout_loss", moment) for moment in ("best", "last")}
    assert [(found["lr"], found["setting"], found["step"]) for found in chosen.values()] == [(1, 1, 10), (2, 0, 20)]
    for question, moment, expected in (
        ("tuned", "best", 1.0),  # plain's lowest loss is 2, at 2@10
        ("tuned", "last", 2.0),  # its lowest last loss is 3, at 1@20
        ("matched", "best", 2.0),  # of its trial 1 (lr 1, second seed) the lower is the second
        ("matched", "last", 5.0),  # of its trial 2 the last
    ):
        other = comparisons.control(one["plain"], chosen[moment], "holdout_loss", moment, question)
        assert other["test"]["holdout_loss"] == expected, (question, moment)
    assert trials.choose(one["plain"]["trials"], "kid", "best") == (0, 10)
    table = comparisons.comparisons([one, records({**PLAIN_TEST, "2@10": 1.2}, {"1@10": 1.5, "2@20": 2.5})], ["sdft"])
    assert table["tuned/best"]["sdft"]["holdout_loss"]["difference"] == pytest.approx((0.5 + 0.3) / 2)
    expected = {"difference": -2.5, "low": -2.5, "high": -2.5, "verdict": intervals.paired([-2.5, -2.5], "min")["verdict"]}
    assert table["matched/last"]["sdft"]["holdout_loss"] == expected


def test_settings_are_judged_where_nothing_is_chosen() -> None:
    """Oracle: setting 1 ends at 5 and 4 against plain's 4 and 7: -1 in the mean over the learning rates."""
    by_seed = [records(PLAIN_TEST, {})] * 2
    first, second = comparisons.settings_table(by_seed, arms.DIGITS, ["sdft"])["sdft"]
    assert first["holdout_loss"]["difference"] == pytest.approx(-1)
    assert second["holdout_loss"]["difference"] == pytest.approx((6 - 3 + 9 - 8) / 2)


def test_guidance_is_not_judged_by_the_loss_and_psi_not_by_itself() -> None:
    """Oracle: by hand, for every arm."""
    by_name = {measure.name: measure for measure in arms.MEASURES}
    assert [arm for arm in arms.DIGITS.arms if not arms.judged(arm, by_name["holdout_loss"])] == ["ant_guided"]
    assert all(arms.judged(arm, by_name["kid"]) for arm in arms.DIGITS.arms)
    assert arms.criteria("ant_guided") == ("kid",)
    assert [arm for arm in arms.DIGITS.arms if arms.graded_by_psi(arm, by_name["kid"])] == ["sadm", "ant+sdft+sadm"]
    assert not any(arms.graded_by_psi("sadm", by_name[name]) for name in ("holdout_loss", "kid_pixels"))
    for claim in page.CLAIMS:
        assert not any(arms.graded_by_psi(claim.arm, by_name[name]) for name in claim.measures), claim
        assert all(arms.judged(claim.arm, by_name[name]) for name in claim.measures), claim


def test_every_trial_is_valid_and_budgets_are_equal() -> None:
    """Oracle: the checks that a run's file goes through; as many settings everywhere."""
    for benchmark in arms.BENCHMARKS.values():
        assert {len(settings) for settings in benchmark.arms.values()} == {2}
        for arm, settings in benchmark.arms.items():
            for setting in settings:
                try:
                    arms.trial_spec(benchmark, 0, setting.method, 1e-4, training_seed=7, sampled=True)
                except UserError as error:
                    pytest.fail(f"{benchmark.name}, {arm}: {error}")


def test_a_small_run(tmp_path: Path) -> None:
    """Oracle: by hand what is evaluated and measured; the controls share the method's training seeds; pixels in a formula of its own."""
    digits = claims.quick(arms.DIGITS)
    plain, sadm = (trials.run_arm(digits, arm, 1, str(tmp_path)) for arm in ("plain", "sadm"))
    assert [one["training_seed"] for one in plain["trials"]] == [one["training_seed"] for one in sadm["trials"]] == [100, 101]
    names = {measure.name for measure in arms.MEASURES}
    for one, everywhere in ((plain, True), (sadm, False)):
        assert [evaluation["step"] for evaluation in one["trials"][0]["evaluations"]] == [2, 4]
        assert [names <= set(evaluation) for evaluation in one["trials"][1]["evaluations"]] == [everywhere, True]
        assert all(names <= set(values) and all(map(math.isfinite, values.values())) for values in one["test"].values())
    assert sadm["images"] == {"shots": 10, "validation": 200, "test": 587}
    assert {"source", "0@4", "1@4"} <= set(plain["test"])
    one = {"plain": plain, "sadm": sadm}
    assert set(comparisons.comparisons([one, one], ["sadm"])) == set(page.QUESTIONS)
    pixels = trials.PixelExtractor().features(torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8))
    torch.testing.assert_close(pixels, torch.tensor([[0, 1, 0.2, 0.4]]))


def small_result(plain_test: list[dict[str, float]], method_test: dict[str, float]) -> dict[str, Any]:
    by_seed = [records(one, method_test) for one in plain_test]
    digits = arms.DIGITS
    return {
        "benchmark": "digits",
        "command": "python bench/claims/claims.py",
        "machine": MACHINE,
        "seeds": len(by_seed),
        "processes": 2,
        "trials": 8,
        "wall_sec": 60.0,
        "cpu_sec": 90.0,
        "protocol": claims.protocol(digits, by_seed[0]),
        "arms": page.arms_in_words(digits, ["sdft"]),
        "levels": comparisons.levels(by_seed),
        "comparisons": comparisons.comparisons(by_seed, ["sdft"]),
        "settings": comparisons.settings_table(by_seed, digits, ["sdft"]),
        "winners": comparisons.winners(by_seed, ["sdft"]),
        "relative_cost": comparisons.relative_cost(by_seed, ["sdft"]),
    }


def test_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the figures by hand; equal measures are not confirmed, and the emoji part says that it wasn't run."""
    monkeypatch.setattr(paired, "FEWEST_SEEDS", 2)
    result = small_result([PLAIN_TEST, {**PLAIN_TEST, "2@10": 1.2, "2@20": 5.02}], {"1@10": 1.5, "2@20": 2.5})
    text = page.page({"digits": result})
    assert "SDFT's claim that distilling from the source counters overfitting isn't confirmed here. |" in text
    assert "ANT's claim" not in text  # it isn't among the arms
    assert "+0.4<br>(-0.871 .. +1.67)<br>no difference shown |" in text
    assert "-2.51<br>(-2.64 .. -2.38)<br>**better** |" in text
    assert "each with 2 settings" in text
    assert "1.0 (`sdft`)" in text
    assert "1.5 minutes of CPU time" in text
    assert "| `sdft` | 1, 2, 10 | 1, 2, 10 |" in text
    assert "Needs a GPU; not run." in text
    assert "python bench/claims/claims.py --benchmark emoji" in text


def test_claims_in_words() -> None:
    """Oracle: by hand; confirmed needs every measure better at the tuned best checkpoint, whatever the others say."""
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


def gan_record(case: str, arm: str, seed: int, kid: float, path: float) -> dict[str, Any]:
    """A trial whose best checkpoint is twice as good as its last."""
    values = {"modes": 9.0, "pairwise_distance": 0.5, "precision": 0.6, "recall": 0.2, "memorisation": 0.1}
    last = {"kid": kid, "path_uniformity": path, **values}
    return {
        "case": case,
        "arm": arm,
        "seed": seed,
        "images": {"shots": 10, "validation": 200, "test": 587},
        "test": {"last": last, "best": {**last, "kid": kid / 2}},
    }


def test_gans_are_compared_by_seed() -> None:
    """Oracle: by hand; the order in which the trials came back doesn't matter."""
    finished = [gan_record("fastgan", "plain", seed, 8.0 + seed, 0.5) for seed in (1, 0)]
    finished += [gan_record("fastgan", "mixdl", seed, 6.0 + seed, 0.5 - 0.1 * (seed + 1)) for seed in (0, 1)]
    found = gans.gan_comparison(finished, "fastgan", 2)
    no_verdict = intervals.paired([-2.5, -2.5], "min")["verdict"]
    assert found["last"]["kid"] == {"difference": -2.0, "low": -2.0, "high": -2.0, "verdict": no_verdict}
    assert found["best"]["kid"]["difference"] == -1.0
    assert found["last"]["path_uniformity"]["difference"] == pytest.approx(-0.15)
    assert found["last"]["path_uniformity"]["verdict"] == "no verdict: fewer than three seeds"
    assert gans.gan_levels(finished, "fastgan")["best"]["plain"]["kid"] == pytest.approx(4.25)
    evaluations = [{"step": 10, "kid": 3.0}, {"step": 20, "kid": 1.0}, {"step": 30, "kid": 1.0}, {"step": 40, "kid": 2.0}]
    assert gans.chosen_steps(evaluations) == {"last": 40, "best": 20}


def test_gan_files_are_valid_and_differ_in_the_method_alone() -> None:
    """Oracle: the checks that a run's file goes through; settings, seeds and images of both arms."""
    for benchmark in gans.GAN_BENCHMARKS.values():
        for case in benchmark.cases:
            plain, mixdl = (gans.gan_spec(benchmark, case, arm, 3) for arm in gans.ARMS)
            assert plain.seed == mixdl.seed == 3
            assert (plain.gan, plain.recipe) == (mixdl.gan, mixdl.recipe)
            assert plain.file.model_dump(exclude={"method"}) == mixdl.file.model_dump(exclude={"method"})
            assert list(mixdl.methods) == ["mixdl"]


@pytest.mark.parametrize("case", ["stylegan2", "fastgan"])
def test_a_small_run_of_gans(tmp_path: Path, case: str) -> None:
    """Oracle: by hand what is evaluated; two models' measures on the test split, where the last isn't the best."""
    quick = gans.quick_gans(gans.GAN_BENCHMARKS[case])
    one = gans.run_gan(quick, case, "mixdl", 1, str(tmp_path))
    assert [evaluation["step"] for evaluation in one["evaluations"]] == [2, 4]
    assert one["images"] == {"shots": 10, "validation": 200, "test": 587}
    names = {measure.name for measure in gans.MEASURES}
    assert all(set(values) == names and all(map(math.isfinite, values.values())) for values in one["test"].values())
    assert (one["step"]["best"] == 4) == (one["test"]["best"] == one["test"]["last"])


def test_the_best_checkpoint_is_measured_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a training that stops there; FastGAN's generator is its spectral norms' vectors too, which no average holds."""
    quick = gans.quick_gans(gans.FASTGAN)
    case = quick.cases["fastgan"]
    of_steps = [
        replace(quick, cases={"fastgan": replace(case, train={**case.train, "steps": steps, "lr": 0.02})}) for steps in (case.every, 4)
    ]
    monkeypatch.setattr(gans, "chosen_steps", lambda evaluations: {"last": int(evaluations[-1]["step"]), "best": case.every})
    stopped, longer = (gans.run_gan(benchmark, "fastgan", "plain", 1, str(tmp_path)) for benchmark in of_steps)
    assert longer["test"]["best"] == stopped["test"]["last"]


def test_enlarged_digits_are_seen_as_digits() -> None:
    """Oracle: each pixel eight times as large is the digit itself."""
    images = torch.randint(256, (3, 1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    inner = load_extractor("digits", device=torch.device("cpu"))
    enlarged = images.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    torch.testing.assert_close(gans.Shrunk(inner).features(enlarged), inner.features(images))


def test_the_gans_section(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand; confirmed is what is better at both moments, and a share of copies of a tenth is memorising."""
    monkeypatch.setattr(paired, "FEWEST_SEEDS", 2)
    finished = [
        gan_record(case, arm, seed, 8.0, 0.5 if arm == "plain" else 0.301 - 0.002 * seed)
        for case in gans.GANS_EMOJI.cases
        for arm in gans.ARMS
        for seed in (0, 1)
    ]
    result = {
        "command": "python bench/claims/claims.py --benchmark gans-emoji",
        "machine": MACHINE,
        "seeds": 2,
        "wall_sec": 60.0,
        "cpu_sec": 120.0,
        "protocol": {
            "images": finished[0]["images"],
            "cases": {
                name: {"title": case.title, "source": case.source, "train": case.train, "every": case.every}
                for name, case in gans.GANS_EMOJI.cases.items()
            },
            "evaluate": gans.GANS_EMOJI.evaluate,
            "note": "nothing",
        },
        "levels": {case: gans.gan_levels(finished, case) for case in gans.GANS_EMOJI.cases},
        "comparisons": {case: gans.gan_comparison(finished, case, 2) for case in gans.GANS_EMOJI.cases},
        "trials": finished,
    }
    text = gans_page.gans_section(result, gans.GANS_EMOJI)
    assert text.count("**MixDL's claim that it makes images change evenly along paths through the latent space is confirmed here**") == 2
    assert "MixDL's claim that it keeps the images diverse isn't confirmed here" in text
    assert "Plain training memorises at this length: 10.0 % of its last images are copies of a shot." in text
    assert "-0.2<br>(-0.213 .. -0.187)<br>better" in text
    assert "How they were chosen: nothing was tried before." in text
    assert "Needs a GPU; not run." in gans_page.gans_not_run(gans.GANS_EMOJI)
    assert "Needs a GPU" not in gans_page.gans_not_run(gans.FASTGAN)


def biased_records(method: list[tuple[float, float]], plain: list[tuple[float, float]]) -> dict[str, Any]:
    """Of one seed, with (style, unseen) of every evaluation; the coverage is a tenth of the unseen share."""

    def record(points: list[tuple[float, float]]) -> dict[str, Any]:
        found = [
            {"step": n, "holdout_loss": 1.0 - n, "style": style, "unseen": kept, "coverage": kept / 10}
            for n, (style, kept) in enumerate(points)
        ]
        return {"trials": [{"points": found[:1]}, {"points": found[1:]}], "source": {"style": 0.0, "unseen": 0.0, "coverage": 0.0}}

    return {"sdft": record(method), "plain": record(plain)}


def test_at_equal_style_the_most_that_either_side_keeps_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: by hand. Of models of style .9 or more method keeps .4 and .35, plain .3 and .2; at .99 the first seed's method has none."""
    monkeypatch.setattr(paired, "FEWEST_SEEDS", 2)
    by_seed = [
        biased_records([(0.5, 0.6), (0.9, 0.4), (0.95, 0.1)], [(0.9, 0.1), (0.96, 0.3), (1.0, 0.05)]),
        biased_records([(0.9, 0.2), (0.99, 0.35)], [(0.8, 0.5), (1.0, 0.2)]),
    ]
    at_90, at_99 = (biased.compared(by_seed, "sdft", "unseen", style) for style in (0.9, 0.99))
    assert [at_90[name] for name in ("seeds", "method", "plain", "difference")] == pytest.approx([2, 0.375, 0.25, 0.125])
    assert [at_99[name] for name in ("seeds", "method", "plain")] == pytest.approx([1, 0.35, 0.2])
    assert biased.compared(by_seed, "sdft", "unseen", 1.5)["seeds"] == 0
    assert biased.chosen(by_seed[0]["plain"])["style"] == 1.0
    result = {
        "command": "python bench/claims/biased.py",
        "machine": MACHINE,
        **{"seeds": 2, "trials": 4, "cpu_sec": 60.0, "trials_an_arm": 6, "evaluations": 6, "samples": 300},
        "levels": {name: {"style": 0.9, "unseen": 0.3, "coverage": 0.1} for name in ("source", "chosen", "last")},
        "comparisons": {"sdft": {what: {"0.9": at_90, "0.99": at_99} for what in biased.KEPT}},
    }
    text = page.page({"biased": result})
    assert biased_page.biased_not_run() not in text
    assert "0.375 - 0.250 = +0.125<br>" in text
    assert "(1 seeds)" in text
