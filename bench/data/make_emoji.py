"""Draw the colour-emoji benchmark: pictures drawn by people, with no download but two of Debian's packages.

    apt-get install fonts-noto-color-emoji unicode-data
    python bench/data/make_emoji.py OUT [--size 64] [--seeds 5]
    python bench/data/make_emoji.py --check

Source: every emoji but animals and food. Target: food. OUT/source and OUT/target are the two domains; OUT/shots-SEED (10),
OUT/validation-SEED (40) and OUT/test-SEED (the rest) split the target by each seed. Fully-qualified emoji alone, without skin tones;
what the font draws as nothing, as several glyphs or as another emoji's picture is left out. The same packages give the same pixels.
Exits with 2 where a package is missing. --check draws everything twice in memory and looks at it, for a machine that has the font.

The pictures are Noto Color Emoji's, (c) Google, under the SIL Open Font License 1.1: name it where you show them.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
EMOJI_TEST = Path("/usr/share/unicode/emoji/emoji-test.txt")
LICENCE = "Noto Color Emoji, (c) Google, SIL Open Font License 1.1 (https://openfontlicense.org)"

DOMAINS: Mapping[str, str | None] = {"Animals & Nature": None, "Food & Drink": "target", "Component": None}
"""Of a group; all others are the source."""
SKIN_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
SHOTS, VALIDATION = 10, 40

FONT_SIZE = 109
"""The font's only one: its pictures are bitmaps."""
CANVAS = 160
MARGIN = 1 / 32
"""Of the side, on each of them."""
ONE_GLYPH_WIDTH = 150
"""Pixels; a sequence the font doesn't know is drawn as several glyphs of 136 in a row."""
WHITE = (255, 255, 255)


@dataclass(frozen=True)
class Emoji:
    """A line of emoji-test.txt."""

    text: str
    name: str
    group: str

    @property
    def file(self) -> str:
        """`1f355-pizza.png`."""
        code = "-".join(f"{ord(character):x}" for character in self.text)
        words = "".join(character if character.isalnum() else "-" for character in self.name.lower())
        return f"{code}-{'-'.join(part for part in words.split('-') if part)}.png"


def parse(lines: Iterable[str]) -> list[Emoji]:
    """The fully-qualified emoji of an emoji-test.txt, in its order, without those with a skin tone."""
    found, group = [], ""
    for line in lines:
        if line.startswith("# group:"):
            group = line.removeprefix("# group:").strip()
        codes, _, rest = line.partition(";")
        status, _, comment = rest.partition("#")
        if status.strip() != "fully-qualified":
            continue
        text = "".join(chr(int(code, 16)) for code in codes.split())
        if not SKIN_TONES & set(text):
            found.append(Emoji(text, comment.split(maxsplit=2)[2].strip(), group))
    return found


def domain(emoji: Emoji) -> str | None:
    """`source`, `target`, or None for neither."""
    return DOMAINS.get(emoji.group, "source")


def distinct(pictures: Sequence[tuple[Emoji, Image.Image | None]]) -> tuple[list[tuple[Emoji, Image.Image]], Counter[str]]:
    """The drawn ones, each picture once (its first emoji's; the target's before the source's), and how many were left out, by reason."""
    kept, seen, left_out = [], set(), Counter[str]()
    for emoji, picture in sorted(pictures, key=lambda pair: domain(pair[0]) != "target"):
        if picture is None:
            left_out["not one glyph"] += 1
        elif picture.getextrema() == ((255, 255),) * 3:
            left_out["blank"] += 1
        elif picture.tobytes() in seen:
            left_out["duplicate"] += 1
        else:
            seen.add(picture.tobytes())
            kept.append((emoji, picture))
    return kept, left_out


def split(names: Sequence[str], seed: int) -> dict[str, list[str]]:
    """`shots`, `validation` and `test` of one seed; by a hash, so that no library's version changes it."""
    order = sorted(names, key=lambda name: hashlib.sha256(f"emoji:{seed}:{name}".encode()).hexdigest())
    return {"shots": order[:SHOTS], "validation": order[SHOTS : SHOTS + VALIDATION], "test": order[SHOTS + VALIDATION :]}


def fit(drawn: Image.Image, size: int) -> Image.Image:
    """What is drawn on a white RGB canvas, in the middle of a white square, as large as the margin allows; all white where nothing is."""
    ink = np.argwhere((np.asarray(drawn) != 255).any(axis=2))
    square = Image.new("RGB", (size, size), WHITE)
    if len(ink) == 0:
        return square
    (top, left), (bottom, right) = ink.min(axis=0), ink.max(axis=0) + 1
    glyph = drawn.crop((int(left), int(top), int(right), int(bottom)))
    scale = (size - 2 * round(size * MARGIN)) / max(glyph.size)
    width, height = (max(1, round(side * scale)) for side in glyph.size)
    square.paste(glyph.resize((width, height), Image.Resampling.LANCZOS), ((size - width) // 2, (size - height) // 2))
    return square


class Pen:
    """Draws emoji with the font."""

    def __init__(self, font: Path = FONT) -> None:
        self.font = ImageFont.truetype(str(font), FONT_SIZE, layout_engine=ImageFont.Layout.RAQM)

    def draw(self, emoji: Emoji, size: int) -> Image.Image | None:
        """RGB `size` x `size` on white; None where the font has no single glyph for it."""
        left, _, right, _ = self.font.getbbox(emoji.text)
        if right - left > ONE_GLYPH_WIDTH:
            return None
        canvas = Image.new("RGB", (CANVAS, CANVAS), WHITE)
        ImageDraw.Draw(canvas).text((10, 10), emoji.text, font=self.font, embedded_color=True)
        return fit(canvas, size)


def missing(font: Path = FONT, emoji_test: Path = EMOJI_TEST) -> str | None:
    """The first thing that isn't here, in a line; None where everything is."""
    for package, path in (("fonts-noto-color-emoji", font), ("unicode-data", emoji_test)):
        if not path.exists():
            return f"{path} is missing; apt-get install {package} would be right"
    if not features.check("raqm"):
        return "Pillow has no Raqm layout; Pillow's own wheels have it, another build needs libraqm"
    return None


def pictures(size: int) -> tuple[list[tuple[Emoji, Image.Image]], Counter[str]]:
    """Everything of both domains, drawn."""
    pen = Pen()
    emoji = [one for one in parse(EMOJI_TEST.read_text(encoding="utf-8").splitlines()) if domain(one) is not None]
    return distinct([(one, pen.draw(one, size)) for one in emoji])


def write(out: Path, kept: Sequence[tuple[Emoji, Image.Image]], seeds: int) -> None:
    """The folders; what stands in them from before goes."""
    domains = {part: {emoji.file: image for emoji, image in kept if domain(emoji) == part} for part in ("source", "target")}
    for part, images in domains.items():
        _write_folder(out / part, images)
    for seed in range(seeds):
        for part, names in split(list(domains["target"]), seed).items():
            _write_folder(out / f"{part}-{seed}", {name: domains["target"][name] for name in names})


def _write_folder(folder: Path, images: Mapping[str, Image.Image]) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name, image in images.items():
        image.save(folder / name, optimize=True)


def counts(kept: Sequence[tuple[Emoji, Image.Image]], left_out: Mapping[str, int]) -> str:
    """In lines, with the licence."""
    groups = Counter((domain(emoji), emoji.group) for emoji, _ in kept)
    lines = [f"{part}: {sum(count for (of, _), count in groups.items() if of == part)}" for part in ("source", "target")]
    lines += [f"  {part}: {group} {count}" for (part, group), count in groups.items()]
    lines += [f"left out: {count} {reason}" for reason, count in left_out.items()]
    return "\n".join([*lines, LICENCE])


def check(size: int) -> list[str]:
    """What is wrong with the pictures, in lines; none where nothing is."""
    kept, left_out = pictures(size)
    again = dict(pictures(size)[0])
    by_name: dict[str, Any] = {emoji.name: np.asarray(image, dtype=float) for emoji, image in kept}
    red, green = ((array := by_name[name])[(array.min(axis=2) < 200)].mean(axis=0) for name in ("red apple", "green apple"))
    sides = [np.asarray(image) for _, image in kept]
    found = {
        "fewer than 1,500 source pictures": sum(domain(emoji) == "source" for emoji, _ in kept) < 1500,
        "fewer than 110 target pictures": sum(domain(emoji) == "target" for emoji, _ in kept) < 110,
        "a second drawing differs": any(image.tobytes() != again[emoji].tobytes() for emoji, image in kept),
        f"a picture isn't {size} x {size} RGB": any(array.shape != (size, size, 3) for array in sides),
        "a picture has hardly any ink": any((array.min(axis=2) < 250).mean() < 0.02 for array in sides),
        "a picture's ink reaches the border": any((array[[0, -1]] < 250).any() or (array[:, [0, -1]] < 250).any() for array in sides),
        "the red apple isn't red": red.argmax() != 0,
        "the green apple isn't green": green.argmax() != 1,
        "glyphs of several parts": left_out["not one glyph"] > 20,
    }
    return [problem for problem, there in found.items() if there]


def main() -> int:
    """Write the folders, or --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    if (problem := missing()) is not None:
        print(problem, file=sys.stderr)
        return 2
    if options.check:
        problems = check(options.size)
        print("\n".join(problems) if problems else "the pictures are as they should be")
        return 1 if problems else 0
    if options.out is None:
        parser.error("a folder to write, or --check, is right")
    kept, left_out = pictures(options.size)
    write(options.out, kept, options.seeds)
    print(counts(kept, left_out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
