"""docs/claims.md from the results of claims.py and biased.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.claims.arms import BENCHMARKS, GUIDED, MEASURES, PLAIN, Measure, graded_by_psi
from bench.claims.biased_page import biased_not_run, biased_section
from bench.claims.gans import GAN_BENCHMARKS
from bench.claims.gans_page import gans_not_run, gans_section

Result = Mapping[str, Any]
ROUNDING = 1e-12
BY_NAME = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True)
class Claim:
    """A paper's claim against plain fine-tuning, and the measures it has to show in; an arm's own features are not among them."""

    whose: str
    arm: str
    text: str
    measures: tuple[str, ...]


CLAIMS = (
    Claim("ANT's", "ant_noise", "training on adversarially chosen noise gives better images", ("kid", "kid_pixels")),
    Claim("ANT's", GUIDED, "similarity guidance with adversarial noise gives better images", ("kid", "kid_pixels")),
    Claim("ANT's", GUIDED, "similarity guidance with adversarial noise keeps the images diverse", ("intra_distance",)),
    Claim("SDFT's", "sdft", "distilling from the source keeps the images diverse", ("pairwise_distance", "intra_distance")),
    Claim("SDFT's", "sdft", "distilling from the source counters overfitting", ("memorisation",)),
    Claim("SADM's", "sadm", "keeping a batch's structure gives better images", ("kid_pixels",)),
    Claim("DDPM-PA's", "ddpm_pa", "keeping relative distances keeps the images diverse", ("pairwise_distance", "intra_distance")),
    Claim("DDPM-PA's", "ddpm_pa", "keeping relative distances and fine detail gives better images", ("kid", "kid_pixels")),
    Claim("our own", "ant+sdft+sadm", "methods combined do better than plain fine-tuning", ("holdout_loss", "kid_pixels")),
)
WORDS = {
    "tuned/best": "each at its own learning rate, best checkpoint",
    "tuned/last": "each at its own learning rate, equal steps",
    "matched/best": "at the method's learning rate, best checkpoint",
    "matched/last": "at the method's learning rate, equal steps",
}


def page(results: Mapping[str, Result]) -> str:
    """The whole page; `results` has the benchmarks that were run, by name."""
    parts = ["# Do the methods' claims hold?\n", INTRODUCTION]
    for name in BENCHMARKS:
        parts.append(section(results[name]) if name in results else not_run(name))
        if name == "digits":
            parts.append(biased_section(results["biased"]) if "biased" in results else biased_not_run())
    for name, benchmark in GAN_BENCHMARKS.items():
        parts.append(gans_section(results[name], benchmark) if name in results else gans_not_run(benchmark))
    return "\n".join(parts).rstrip() + "\n"


INTRODUCTION = """\
Written by `python bench/claims/claims.py` and `bench/claims/biased.py`; don't edit it. Each method stands beside plain fine-tuning that
had as many learning rates and as many trials. What isn't shown to be better is written as not confirmed, which is not the same as
refuted: small sets, few seeds, a small network.
"""


TITLES = {"digits": "Digits, 8x8", "emoji": "Colour emoji, 64x64"}


def not_run(name: str) -> str:
    """In a benchmark's place."""
    if name != "emoji":
        return f"## {TITLES[name]}\n\nNot run: `python bench/claims/claims.py --benchmark {name}`.\n"
    return f"""\
## {TITLES[name]}

Needs a GPU; not run. The commands that would:

```
python bench/data/make_emoji.py emoji
fewshot-ray run sweeps/pretrain-emoji.yaml
fewshot-ray export runs/pretrain-emoji emoji/ddpm
python bench/claims/claims.py --benchmark emoji
```
"""


def section(result: Result) -> str:
    """One benchmark: claims, tables, protocol."""
    machine = result["machine"]
    parts = [
        f"## {TITLES[result['benchmark']]}\n",
        f"`{result['command']}`, {machine['date']}, {machine['cores']} cores ({machine['cpu']}), PyTorch {machine['torch']}: "
        f"{result['seeds']} seeds, {result['trials']} trials in {result['cpu_sec'] / 60:.1f} minutes of CPU time "
        f"({result['wall_sec'] / 60:.1f} by the clock in {result['processes']} processes).\n",
        "### The papers' claims\n",
        claims_table(result),
        protocol(result),
    ]
    for key, words in QUESTIONS.items():
        parts += [f"### {words}\n", comparison_table(result, key)]
    parts += ["### What each setting does by itself\n", SETTINGS, settings_rows(result)]
    parts += ["### What was chosen\n", winners_table(result)]
    return "\n".join(parts)


QUESTIONS = {
    "tuned/best": "Tuned learning rate, best checkpoint",
    "tuned/last": "Tuned learning rate, equal steps",
    "matched/best": "Matched learning rate, best checkpoint",
    "matched/last": "Matched learning rate, equal steps",
}

SETTINGS = """\
Last step, at the same learning rates (a seed's difference is the mean over them) and training seed. Nothing is chosen
here, so the validation images judge.
"""


DECISIVE = f"""\
**Confirmed** means: better in every measure named, {WORDS["tuned/best"]}. "Settings by themselves" is the comparison without
tuning, at equal learning rates and steps (the last table but one): there plain fine-tuning has overfitted where its
learning rate is high, and what holds it back looks good. What of that a smaller learning rate or an earlier checkpoint gives
as well is no gain of the method.
"""


def claims_table(result: Result) -> str:
    """A line a claim; decisive is the tuned comparison at the best checkpoint."""
    lines = ["| claim | what we see |", "|---|---|"]
    lines += [f"| {verdict_on(claim, result)} | {seen(claim, result)} |" for claim in CLAIMS if claim.arm in result["arms"]]
    return "\n".join(lines) + f"\n\n{DECISIVE}"


def verdict_on(claim: Claim, result: Result) -> str:
    """In plain words."""
    found = [result["comparisons"]["tuned/best"][claim.arm][name]["verdict"] for name in claim.measures]
    subject = f"{claim.whose[0].upper()}{claim.whose[1:]} claim that {claim.text}"
    if all(verdict == "better" for verdict in found):
        return f"**{subject} is confirmed here.**"
    if all(verdict == "worse" for verdict in found):
        return f"{subject} isn't confirmed here: worse than plain fine-tuning."
    return f"{subject} isn't confirmed here."


def seen(claim: Claim, result: Result) -> str:
    """The decisive figures, where the other comparisons say otherwise, and the settings without tuning."""
    texts = []
    for name in claim.measures:
        cells = {key: rows[claim.arm][name] for key, rows in result["comparisons"].items()}
        decisive = cells.pop("tuned/best")
        otherwise = [f"; {WORDS[key]}: {cell['verdict']}" for key, cell in cells.items() if cell["verdict"] != decisive["verdict"]]
        settings = Counter(cells[name]["verdict"] for cells in result["settings"][claim.arm])
        untuned = ", ".join(f"{verdict} ({count})" for verdict, count in settings.items())
        figures = f"**{BY_NAME[name].title}**: {decisive['verdict']}, {interval(decisive)}"
        texts.append(f"{figures}{''.join(otherwise)}; settings by themselves: {untuned}.")
    return " ".join(texts)


def interval(cell: Mapping[str, Any]) -> str:
    """Difference and interval."""
    return f"{number(cell['difference'])} ({number(cell['low'])} .. {number(cell['high'])})"


def number(value: float) -> str:
    """With its sign, to three digits; what is left of rounding is 0."""
    return "0" if abs(value) < ROUNDING else f"{value:+.3g}"


def comparison_table(result: Result, key: str) -> str:
    """A row a method, a column a measure; first the levels, for scale."""
    level = result["levels"][f"plain/{key.split('/')[1]}"]
    rows = [("*source model's level*", [f"*{result['levels']['source'][m.name]:.3g}*" for m in MEASURES])]
    rows += [("*tuned plain fine-tuning's level*", [f"*{level[m.name]:.3g}*" for m in MEASURES])]
    for arm, cells in result["comparisons"][key].items():
        rows.append((f"`{arm}`", [shown(arm, m, cells[m.name]) for m in MEASURES]))
    return table("method minus plain", rows)


def settings_rows(result: Result) -> str:
    """As the comparison table, a row a setting."""
    rows = []
    for arm, settings in result["settings"].items():
        for words, cells in zip(result["arms"][arm], settings, strict=True):
            rows.append((f"`{arm}`: {words}", [shown(arm, m, cells[m.name]) for m in MEASURES]))
    return table("setting minus plain", rows)


def table(corner: str, rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    """Markdown, the measures as columns."""
    heads = [f"{m.title} ({'lower' if m.direction == 'min' else 'higher'} is better)" for m in MEASURES]
    lines = [f"| {corner} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    return "\n".join([*lines, *(f"| {head} | {' | '.join(cells)} |" for head, cells in rows)]) + "\n"


def shown(arm: str, measure: Measure, cell: Mapping[str, Any]) -> str:
    """Difference, interval, verdict; a measure in the arm's own features is marked."""
    verdict = cell["verdict"]
    said = f"**{verdict}**" if verdict in ("better", "worse") else verdict
    return f"{interval(cell).replace(' ', '<br>', 1)}<br>{said}{'†' if graded_by_psi(arm, measure) else ''}"


def winners_table(result: Result) -> str:
    """Learning rate, setting and step of every seed, best checkpoint."""
    lines = ["By seed: learning rate, number of the setting (in the order above), step of the best checkpoint.\n"]
    lines += ["| arm | " + " | ".join(f"seed {seed}" for seed in range(result["seeds"])) + " |", "|---" * (result["seeds"] + 1) + "|"]
    for arm, chosen in result["winners"].items():
        cells = [f"{one['lr']:g}, {one['setting'] + 1}, {one['step']}" for one in chosen]
        lines.append(f"| `{arm}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def protocol(result: Result) -> str:
    """In words, with this result's numbers."""
    p = result["protocol"]
    shots, validation, test = (p["images"][part] for part in ("shots", "validation", "test"))
    intervals = 4 * len(result["comparisons"]["tuned/best"]) * len(MEASURES)
    costs = ", ".join(f"{cost:.1f} (`{arm}`)" for arm, cost in result["relative_cost"].items())
    rates = ", ".join(f"{lr:g}" for lr in p["learning_rates"])
    return f"""\
### Protocol

- A seed is a split ({shots} shots, {validation} validation and {test} test images), the training's randomness and the
  measures' noise. Differences are paired by seed; intervals are 95 % t-intervals over {result["seeds"]} seeds, without
  correction: of {intervals} intervals in the four tables one in twenty would miss zero by chance alone.
- **Equal budgets.** Every arm, plain fine-tuning among them, has {p["trials_an_arm"]} trials a seed: the learning rates
  {rates}, each with {p["settings_an_arm"]} settings. Plain fine-tuning has no settings and takes as many training
  seeds. A method's n-th setting has the n-th of these seeds: the same batches, timesteps and noise. A trial is
  {p["steps"]} steps of {p["batch_size"]} images with an evaluation every {p["every"]}. Trials and steps are equal, time
  is not: a trial takes, in CPU time of plain fine-tuning's, {costs}.
- **Tuned**: both sides choose among their {p["trials_an_arm"]} trials. **Matched**: the method chooses among its own, plain
  fine-tuning is its trial at the very learning rate and training seed chosen, so what luck there is in choosing is the
  method's.
- **Best checkpoint**: trial and step with the best validation value. **Equal steps**: the trial with the best validation
  value at the last step, and that step.
- The validation value is the held-out loss; in the comparisons of `{GUIDED}` it is KID, on both sides. Guidance moves
  the loss's optimum away from the held-out loss by construction, so there that loss is reported and **not judged**.
- All tables but the settings' are on the test split, which nothing was chosen on, from {p["final_samples"]} samples
  ({p["sampler"]}, {p["sampler_steps"]} steps; the same noise for all).
- † **A measure must not grade itself.** KID, distances and share memorised see images through {p["extractor"]},
  which is also what SADM's Psi starts from: for `sadm` and the composition they aren't evidence. The columns "pixels"
  take the same measures on the images' raw numbers, where no network has trained; SADM's claim is decided there. It is
  a coarse view: brightness and the strokes' width weigh most in it.
- The settings come from the papers' presets and from an exploratory run on a split that is not among these seeds;
  {p["note"]}
"""


def arms_in_words(benchmark: Any, arms: Sequence[str]) -> dict[str, list[str]]:
    """The settings' words by arm, as the page shows them."""
    return {arm: [setting.words for setting in benchmark.arms[arm]] for arm in arms if arm != PLAIN}
