"""The GANs' sections of docs/claims.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.claims.gans import ARMS, DIGIT_PIXELS, MEASURES, MOMENTS, GanBenchmark

Result = Mapping[str, Any]
BY_NAME = {measure.name: measure for measure in MEASURES}
CLAIMS = (
    ("makes images change evenly along paths through the latent space", ("path_uniformity",)),
    ("keeps the images diverse", ("modes", "pairwise_distance")),
    ("gives images like those held out, and all kinds of them", ("precision", "recall")),
    ("keeps training from memorising", ("memorisation",)),
)
MOMENT_WORDS = {"last": "last step", "best": "checkpoint with the best validation KID"}
VISIBLE = 0.05
"""Share of copies from which on training is said to memorise."""


def gans_not_run(benchmark: GanBenchmark) -> str:
    """In a benchmark's place."""
    commands = [f"python bench/claims/claims.py --benchmark {benchmark.name}"]
    why = "Not run, or not again since a network changed. The command that would:"
    if benchmark.device == "cuda":
        why, commands = "Needs a GPU; not run. The commands that would:", ["python bench/data/make_emoji.py emoji", *commands]
    return f"## {benchmark.title}\n\n{why}\n\n```\n" + "\n".join(commands) + "\n```\n"


def gans_section(result: Result, benchmark: GanBenchmark) -> str:
    """What was seen of each architecture, and the protocol."""
    machine = result["machine"]
    minutes = f"{result['cpu_sec'] / 60:.0f} minutes of CPU time ({result['wall_sec'] / 60:.0f} by the clock)"
    parts = [
        f"## {benchmark.title}\n",
        f"`{result['command']}`, {machine['date']}, {machine['cores']} cores ({machine['cpu']}), PyTorch {machine['torch']}: "
        f"{result['seeds']} seeds, {len(result['trials'])} trials in {minutes}.\n",
    ]
    for case, settings in result["protocol"]["cases"].items():
        parts += [f"### {settings['title']}\n", claims(result, case), table(result, case)]
    return "\n".join([*parts, protocol(result, benchmark.chosen)])


def claims(result: Result, case: str) -> str:
    """The paper's claims, a line each, and whether plain training memorised."""
    comparison = result["comparisons"][case]
    lines = []
    for text, names in CLAIMS:
        verdicts = {moment: [comparison[moment][name]["verdict"] for name in names] for moment in MOMENTS}
        confirmed = [moment for moment in MOMENTS if all(one == "better" for one in verdicts[moment])]
        said = f"MixDL's claim that it {text} "
        if len(confirmed) == len(MOMENTS):
            said = f"**{said}is confirmed here**"
        elif confirmed:
            said += f"is confirmed at the {MOMENT_WORDS[confirmed[0]]} alone"
        else:
            said += "isn't confirmed here"
        seen = [f"{BY_NAME[name].title}: {', '.join(comparison[moment][name]['verdict'] for moment in MOMENTS)}" for name in names]
        lines.append(f"- {said} ({'; '.join(seen)}).")
    share = result["levels"][case]["last"]["plain"]["memorisation"]
    does = "memorises" if share >= VISIBLE else "doesn't visibly memorise"
    lines.append(f"- Plain training {does} at this length: {100 * share:.1f} % of its last images are copies of a shot.")
    words = " and then at the ".join(MOMENT_WORDS[moment] for moment in MOMENTS)
    return "\n".join(lines) + f"\n\nIn brackets: at the {words}.\n"


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


def protocol(result: Result, chosen: str) -> str:
    """In words, with this result's numbers."""
    images, evaluate, cases = result["protocol"]["images"], result["protocol"]["evaluate"], result["protocol"]["cases"]
    lengths = "; ".join(
        f"{case['title']}: {case['train']['steps']} steps of {case['train']['batch_size']}, judged every {case['every']}"
        for case in cases.values()
    )
    enlarged = any(settings["resolution"] != DIGIT_PIXELS for case in cases.values() for settings in case["source"].values())
    shrunk = " Enlarged digits are shrunk to 8x8 again for that network." if evaluate["extractor"] == "digits" and enlarged else ""
    network = {"digits": "the bundled digit network", "inception": "Inception-V3"}[evaluate["extractor"]]
    return f"""\
### Protocol

- Both arms are one trial a seed with the same settings, initial weights, batches and latents; MixDL's stand at its preset, and nothing is
  tuned on either side. {lengths}. Of the recipes, {result["protocol"]["note"]}; all
  settings are in the result file.
- How they were chosen: {chosen}.
- A seed is a split ({images["shots"]} shots, {images["validation"]} validation and {images["test"]} test images) and the
  training's randomness. Differences are paired by seed, with 95 % t-intervals over {result["seeds"]} seeds and no correction for their
  number.
- Measures are on the test split, which nothing was chosen on, of {evaluate["final_samples"]} samples and {evaluate["final_paths"]} paths,
  through {network}.{shrunk} The checkpoint is chosen by KID on the validation
  split. A claim is confirmed where every measure named is better at both moments. Copies count as precise: read precision beside the share
  memorised.
- Deviation along paths is the standard deviation of the distances between neighbours on straight lines between two latents; modes are the
  shots that are some sample's nearest. A copy is nearer to a shot than half the usual distance of a held-out image.
"""
