"""The section of docs/claims.md on shots that lack half of the target's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Result = Mapping[str, Any]
TITLE = "Digits, 8x8, with biased shots"
WORDS = {"unseen": "unseen digits in style", "coverage": "coverage"}


def biased_not_run() -> str:
    """In its place."""
    return f"## {TITLE}\n\nNot run. The command that would:\n\n```\npython bench/claims/biased.py\n```\n"


def biased_section(result: Result) -> str:
    """What was seen, a table for what is kept, and the protocol."""
    machine = result["machine"]
    parts = [
        f"## {TITLE}\n",
        f"`{result['command']}`, {machine['date']}, {machine['cores']} cores ({machine['cpu']}), PyTorch {machine['torch']}: "
        f"{result['seeds']} seeds, {result['trials']} trials in {result['cpu_sec'] / 60:.0f} minutes of CPU time.\n",
        "Ten shots of the digits 0 to 4. Does a method keep more of the digits 5 to 9, which no shot shows, than plain fine-tuning "
        f"*at the same style*?\n\n{verdicts(result)}\n",
        levels(result),
    ]
    for what in WORDS:
        parts.append(table(result, what))
    return "\n".join([*parts, protocol(result)])


def verdicts(result: Result) -> str:
    """A line a method: at which styles it keeps more, or less."""
    lines = []
    for arm, kept in result["comparisons"].items():
        cells = {f"{WORDS[what]} at style {style}": cell for what, of in kept.items() for style, cell in of.items()}
        found = {verdict: [name for name, cell in cells.items() if cell["verdict"] == verdict] for verdict in ("better", "worse")}
        said = [f"{verdict}: {', '.join(names)}" for verdict, names in found.items() if names]
        lines.append(f"- `{arm}`: {'; '.join(said) or 'no difference shown at any style'}.")
    return "\n".join(lines)


def levels(result: Result) -> str:
    """The source and plain fine-tuning, for scale."""
    words = {
        "source": "source model",
        "chosen": "plain fine-tuning, best validation loss (which sees the digits 0 to 4 only)",
        "last": "plain fine-tuning, last step, mean of its trials",
    }
    lines = ["| | style | unseen digits in style | coverage |", "|---|---|---|---|"]
    for name, title in words.items():
        level = result["levels"][name]
        lines.append(f"| {title} | {level['style']:.2f} | {level['unseen']:.2f} | {level['coverage']:.3f} |")
    return "\n".join(lines) + "\n"


def table(result: Result, what: str) -> str:
    """A row a method, a column a level of style."""
    styles = list(next(iter(result["comparisons"].values()))[what])
    lines = [f"| {WORDS[what]}: method less plain | {' | '.join(f'style {style} or more' for style in styles)} |"]
    lines.append("|---" * (len(styles) + 1) + "|")
    for arm, kept in result["comparisons"].items():
        lines.append(f"| `{arm}` | {' | '.join(_cell(kept[what][style], result['seeds']) for style in styles)} |")
    return "\n".join(lines) + "\n"


def _cell(cell: Mapping[str, Any], seeds: int) -> str:
    if cell["seeds"] == 0:
        return str(cell["verdict"])
    of = "" if cell["seeds"] == seeds else f" ({cell['seeds']} seeds)"
    verdict = f"**{cell['verdict']}**" if cell["verdict"] in ("better", "worse") else cell["verdict"]
    figures = f"{cell['method']:.3f} - {cell['plain']:.3f} = {cell['difference']:+.3f}<br>({cell['low']:+.3f} .. {cell['high']:+.3f})"
    return f"{figures}<br>{verdict}{of}"


def protocol(result: Result) -> str:
    """In words."""
    return f"""\
### Protocol

- A seed is a split: two shots of each digit 0 to 4, validation images of these digits, and the test split with all ten. Methods and
  settings are those of the section before; each arm has {result["trials_an_arm"]} trials a seed with {result["evaluations"]} evaluations.
- Each evaluation is measured from {result["samples"]} samples by a network that tells the two styles apart (99.9 % of images that it hasn't
  seen) and by the bundled digit network's class. "Unseen digits in style" is the share of samples that are in the target's style and
  of the digits 5 to 9; of the target's own images about half are. Coverage is of the test split.
- At each level of style the largest value among an arm's evaluations of at least that style is compared, method less plain, paired by seed
  (95 % t-intervals, no correction for their number). The maxima are found on the measurements they report, on both sides.
"""
