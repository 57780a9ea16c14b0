"""bench/data/make_emoji.py: what it selects. What needs the font is the bench's own `--check`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench.data import make_emoji

EMOJI_TEST = """\
# group: Smileys & Emotion
# subgroup: face-smiling
1F600                                      ; fully-qualified     # \U0001f600 E1.0 grinning face
263A                                       ; unqualified         # \u263a E0.6 smiling face
# Smileys & Emotion subtotal:		2
# group: People & Body
1F44B                                      ; fully-qualified     # \U0001f44b E0.6 waving hand
1F44B 1F3FB                                ; fully-qualified     # \U0001f44b\U0001f3fb E1.0 waving hand: light skin tone
1F468 200D 1F9B0                           ; minimally-qualified # \U0001f468\u200d\U0001f9b0 E11.0 man: red hair
# group: Component
1F3FB                                      ; component           # \U0001f3fb E1.0 light skin tone
# group: Animals & Nature
1F435                                      ; fully-qualified     # \U0001f435 E0.6 monkey face
# group: Food & Drink
1F355                                      ; fully-qualified     # \U0001f355 E0.6 pizza
"""


def picture(shade: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (shade, 0, 0))


def test_lines_become_emoji_of_a_domain() -> None:
    """Oracle: the lines above, by eye."""
    found = make_emoji.parse(EMOJI_TEST.splitlines())
    assert [(one.name, one.group, make_emoji.domain(one)) for one in found] == [
        ("grinning face", "Smileys & Emotion", "source"),
        ("waving hand", "People & Body", "source"),
        ("monkey face", "Animals & Nature", None),
        ("pizza", "Food & Drink", "target"),
    ]
    assert found[3].file == "1f355-pizza.png"
    assert make_emoji.Emoji("\u0031\ufe0f\u20e3", "keycap: 1", "Symbols").file == "31-fe0f-20e3-keycap-1.png"


def test_a_picture_counts_once_and_blanks_never() -> None:
    """Oracle: by hand; of equal pictures the target's stays, so that no source picture is held out."""
    smile, wave, _, pizza = make_emoji.parse(EMOJI_TEST.splitlines())
    flag = make_emoji.Emoji("x", "flag", "Flags")
    blank = Image.new("RGB", (4, 4), (255, 255, 255))
    kept, left_out = make_emoji.distinct([(smile, picture(1)), (wave, picture(2)), (pizza, picture(1)), (flag, blank), (flag, None)])
    assert [(emoji.name, image.getpixel((0, 0))) for emoji, image in kept] == [("pizza", (1, 0, 0)), ("waving hand", (2, 0, 0))]
    assert left_out == {"duplicate": 1, "blank": 1, "not one glyph": 1}


def test_splits_share_nothing_and_follow_the_seed() -> None:
    """Oracle: sets; whatever order the names come in."""
    names = [f"{number}.png" for number in range(133)]
    one, same, other = make_emoji.split(names, 0), make_emoji.split(names[::-1], 0), make_emoji.split(names, 1)
    assert one == same
    assert set(one["shots"]) != set(other["shots"])
    assert {part: len(found) for part, found in one.items()} == {"shots": 10, "validation": 40, "test": 83}
    assert sorted(name for found in one.values() for name in found) == sorted(names)


def test_what_is_drawn_fills_the_square() -> None:
    """Oracle: 40 x 20 pixels of ink in 64 with a margin of 2 become 60 x 30, in the middle; nothing becomes white."""
    canvas = Image.new("RGB", (160, 160), (255, 255, 255))
    assert make_emoji.fit(canvas, 64).getextrema() == ((255, 255),) * 3
    canvas.paste((0, 0, 255), (90, 100, 130, 120))
    ink = np.argwhere(np.asarray(make_emoji.fit(canvas, 64))[..., 0] < 128)
    assert (ink.min(axis=0).tolist(), ink.max(axis=0).tolist()) == ([17, 2], [46, 61])


def test_folders_hold_the_domains_and_splits(tmp_path: Path) -> None:
    """Oracle: by hand; a second writing leaves nothing of the first."""
    food = [(make_emoji.Emoji(chr(0x1F300 + number), f"dish {number}", "Food & Drink"), picture(number)) for number in range(60)]
    smile = (make_emoji.Emoji("\U0001f600", "grinning face", "Smileys & Emotion"), picture(200))
    make_emoji.write(tmp_path, [smile, (make_emoji.Emoji("x", "gone", "Flags"), picture(201))], seeds=0)
    make_emoji.write(tmp_path, [*food, smile], seeds=2)
    assert {path.name: len(list(path.iterdir())) for path in tmp_path.iterdir()} == {
        **{"source": 1, "target": 60, "shots-0": 10, "shots-1": 10},
        **{"validation-0": 40, "validation-1": 40, "test-0": 10, "test-1": 10},
    }
    assert "Food & Drink 60" in make_emoji.counts(food, {})
    assert "Open Font License" in make_emoji.counts(food, {})


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the packages' names; exit code 2."""
    there = tmp_path / "there"
    there.touch()
    assert "apt-get install fonts-noto-color-emoji" in make_emoji.missing(tmp_path / "none", there)
    assert "apt-get install unicode-data" in make_emoji.missing(there, tmp_path / "none")
    monkeypatch.setattr(make_emoji.features, "check", lambda _: False)
    assert "Raqm" in make_emoji.missing(there, there)
    monkeypatch.setattr("sys.argv", ["make_emoji.py", str(tmp_path / "out")])
    monkeypatch.setattr(make_emoji, "missing", lambda: "a package is missing")
    assert make_emoji.main() == 2
    assert not (tmp_path / "out").exists()
