"""The GANs' sections of docs/claims.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claims_gans import ARMS, MEASURES, MOMENTS, GanBenchmark

Result = Mapping[str, Any]
BY_NAME = {measure.name: measure for measure in MEASURES}
CLAIMS = (
    ("makes images change evenly along paths through the latent space", ("path_uniformity",)),
    ("keeps the images diverse", ("modes", "pairwise_distance")),
    ("gives images like those held out, and all kinds of them", ("precision", "recall")),
)
MOMENT_WORDS = {"last": "last step", "best": "checkpoint with the best validation KID"}
DECISIVE = "best"
VISIBLE = 0.05
"""Share of copies from which on training is said to memorise."""


def gans_not_run(benchmark: GanBenchmark) -> str:
    """In a benchmark's place."""
    commands = [f"python bench/claims.py --benchmark {benchmark.name}"]
    why = "Not run."
    if benchmark.device == "cuda":
        why, commands = "Needs a GPU; not run. The commands that would:", ["python bench/make_emoji.py emoji", *commands]
    return f"## {benchmark.title}\n\n{why}\n\n```\n" + "\n".join(commands) + "\n```\n"


def gans_section(result: Result, title: str) -> str:
    """What was seen of each architecture, and the protocol."""
    machine = result["machine"]
    minutes = f"{result['cpu_sec'] / 60:.0f} minutes of CPU time ({result['wall_sec'] / 60:.0f} by the clock)"
    parts = [
        f"## {title}\n",
        f"`{result['command']}`, {machine['date']}, {machine['cores']} cores ({machine['cpu']}), PyTorch {machine['torch']}: "
        f"{result['seeds']} seeds, {len(result['trials'])} trials in {minutes}.\n",
    ]
    for case, settings in result["protocol"]["cases"].items():
        parts += [f"### {settings['title']}\n", claims(result, case), table(result, case)]
    return "\n".join([*parts, protocol(result)])


def claims(result: Result, case: str) -> str:
    """The paper's claims, a line each, and whether plain training memorised."""
    cells = result["comparisons"][case][DECISIVE]
    lines = []
    for text, names in CLAIMS:
        verdicts = [cells[name]["verdict"] for name in names]
        if all(one == "better" for one in verdicts):
            said = f"**MixDL's claim that it {text} is confirmed here**"
        elif all(one == "worse" for one in verdicts):
            said = f"MixDL's claim that it {text} isn't confirmed here: worse than without it"
        else:
            said = f"MixDL's claim that it {text} isn't confirmed here"
        found = "; ".join(f"{BY_NAME[name].title}: {cells[name]['verdict']}" for name in names)
        lines.append(f"- {said} ({found}).")
    share = result["levels"][case]["last"]["plain"]["memorisation"]
    does = "memorises" if share >= VISIBLE else "doesn't visibly memorise"
    lines.append(f"- Plain training {does} at this length: {100 * share:.1f} % of its last images are copies of a shot.")
    return "\n".join(lines) + "\n"


def table(result: Result, case: str) -> str:
    """Both arms' levels and their paired difference, at both moments."""
    heads = [f"{m.title} ({'lower' if m.direction == 'min' else 'higher'} is better)" for m in MEASURES]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for moment in MOMENTS:
        levels, cells = result["levels"][case][moment], result["comparisons"][case][moment]
        for arm in ARMS:
            lines.append(f"| *`{arm}`, {MOMENT_WORDS[moment]}* | {' | '.join(f'{levels[arm][m.name]:.3g}' for m in MEASURES)} |")
        shown = [
            f"{cells[m.name]['difference']:+.3g}<br>({cells[m.name]['low']:+.3g} .. {cells[m.name]['high']:+.3g})<br>"
            f"{cells[m.name]['verdict']}"
            for m in MEASURES
        ]
        lines.append(f"| MixDL minus plain, {MOMENT_WORDS[moment]} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def protocol(result: Result) -> str:
    """In words, with this result's numbers."""
    images, evaluate, cases = result["protocol"]["images"], result["protocol"]["evaluate"], result["protocol"]["cases"]
    lengths = "; ".join(
        f"{case['title']}: {case['train']['steps']} steps of {case['train']['batch_size']}, judged every {case['every']}"
        for case in cases.values()
    )
    shrunk = " Enlarged digits are shrunk to 8x8 again for that network." if evaluate["extractor"] == "digits" else ""
    network = {"digits": "the bundled digit network", "inception": "Inception-V3"}[evaluate["extractor"]]
    return f"""\
### Protocol

- Both arms are one trial a seed with the same settings, initial weights, batches and latents; MixDL's stand at its preset, and nothing is
  tuned on either side. {lengths}. Of the recipes, {result["protocol"]["note"]}; all
  settings are in the result file. They were chosen on a split that is not among these seeds.
- A seed is a split ({images["shots"]} shots, {images["validation"]} validation and {images["test"]} test images) and the
  training's randomness. Differences are paired by seed, with 95 % t-intervals over {result["seeds"]} seeds and no correction for their
  number.
- Measures are on the test split, which nothing was chosen on, of {evaluate["final_samples"]} samples and {evaluate["final_paths"]} paths,
  through {network}.{shrunk} The checkpoint is chosen by KID on the validation split; that choice decides the claims above.
- Deviation along paths is the standard deviation of the distances between neighbours on straight lines between two latents; modes are the
  shots that are some sample's nearest. A copy is nearer to a shot than half the usual distance of a held-out image.
"""
