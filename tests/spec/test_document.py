"""Reading a file: YAML 1.2, lines, ranges, and everything a file can have wrong."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import Document, parse_document, ranges, read_document, substitute, to_yaml, value_at
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange


def parse(text: str) -> Document:
    return parse_document(text, "x.yaml")


def refusal(text: str) -> str:
    with pytest.raises(UserError) as refused:
        parse(text)
    message = str(refused.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        (".5e3", 500.0),
        ("1.", 1.0),
        ("-0.0", -0.0),
        ("+3", 3),
        ("010", 10),
        ("0o10", 8),
        ("0xff", 255),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("1_000", "1_000"),
        ("0b1", "0b1"),
        ("2024-01-01", "2024-01-01"),
        ("12:30", "12:30"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("<= 0.2", "<= 0.2"),
        ("s3://bucket/a b", "s3://bucket/a b"),
    ],
)
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    """Oracle: YAML 1.2.2, section 10.3.2, by hand."""
    read = parse(f"key: {text}").tree["key"]
    assert read == value
    assert type(read) is type(value)


def test_lines_and_key_order_are_kept() -> None:
    """Oracle: lines counted by hand."""
    document = parse("b: 1\n# comment\na:\n  deep: {x: 1,\n         y: 2}\n  list:\n  - 5\n  - 6\n")
    assert list(document.tree) == ["b", "a"]
    assert dict(document.lines) == {
        "": 1, "b": 1, "a": 3, "a.deep": 4, "a.deep.x": 4, "a.deep.y": 5, "a.list": 6, "a.list.0": 7, "a.list.1": 8,
    }  # fmt: skip


def test_an_error_names_the_line_of_the_nearest_path_above() -> None:
    """A missing key has no line; its section has."""
    document = parse("a: 1\nb:\n  c: 2\n")
    assert str(document.error("b.c", "no")) == "x.yaml, line 3: b.c: no"
    assert str(document.error("b.d.e", "no")) == "x.yaml, line 2: b.d.e: no"
    assert str(document.error("z", "no")) == "x.yaml, line 1: z: no"
    assert str(Document({}, "memory").error("z", "no")) == "memory: z: no"


def test_ranges_are_found_wherever_they_stand() -> None:
    """Oracle: the ranges written out by hand."""
    tree = parse(
        "method: {ant: {noise_steps: {int: [1, 20]}}}\n"
        "train: {lr: {log: [1e-5, 3e-4]}, betas: [{float: [0.5, 0.9]}, 0.999],\n"
        "        params: {lora: {rank: {choice: [4, 8]}}}}\n"
    ).tree
    assert ranges(tree) == {
        "method.ant.noise_steps": IntRange(1, 20),
        "train.lr": FloatRange(1e-5, 3e-4, log=True),
        "train.betas.0": FloatRange(0.5, 0.9),
        "train.params.lora.rank": Choice((4, 8)),
    }


@pytest.mark.parametrize(
    "text", ["{float: 3}", "{choice: a}", "{float: [0, 1], log: [1, 2]}", "{int: [0, 1], unit: px}", "{floats: [0, 1]}"]
)
def test_a_mapping_that_only_looks_like_a_range_is_a_mapping(text: str) -> None:
    """Exactly one key, of the four, and a list below it make a range."""
    assert ranges(parse(f"a: {text}").tree) == {}


def test_a_choice_may_hold_mappings() -> None:
    """`params` is chosen among kinds with settings."""
    assert parse("a: {choice: [full, {lora: {rank: 8}}]}").tree == {"a": Choice(("full", {"lora": {"rank": 8}}))}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nlr: {log: [0, 1]}", "x.yaml, line 2: lr: low=0: a log range must begin above 0; {log: [1e-5, 3e-4]} is right"),
        ("a:\n  b: {int: [3, 1]}", "x.yaml, line 2: a.b: low=3, high=1: low must be below high; {int: [1, 20]} is right"),
        ("a: {float: [1, {int: [1, 2]}]}", "x.yaml, line 1: a: a range is inside float; plain values are right there"),
        ("a: {float: [1, .inf]}", "x.yaml, line 1: a.float.1: .inf is not a finite number"),
        ("a: .nan", "x.yaml, line 1: a: .nan is not a finite number"),
        ("a: 1e999", "x.yaml, line 1: a: 1e999 is not a finite number"),
        ("a: 9223372036854775808", "x.yaml, line 1: a: 9223372036854775808 does not fit into 64 bits"),
        ("t:\n  lr: 1\n  b: 2\n  lr: 3", "x.yaml, line 4: t.lr: is given twice (first in line 2); once is right"),
        ("t: {a: 1, 'a': 2}", "x.yaml, line 1: t.a: is given twice (first in line 1); once is right"),
        ("", "x.yaml: is empty; a mapping with name, source, target and method is right"),
        ("# only this\n", "x.yaml: is empty; a mapping with name, source, target and method is right"),
        ("- a\n- b", "x.yaml, line 1: ['a', 'b'] is not a mapping; a mapping with name, source, target and method is right"),
        ("int: [1, 2]", "x.yaml, line 1: int 1 .. 2 is not a mapping; a mapping with name, source, target and method is right"),
        ("a:\n\tb: 1", "x.yaml, line 2: while scanning for the next token found character '\\t' that cannot start any token"
         "; indent with spaces, not tabs"),
        ("a: 1\nb: [1", "x.yaml, line 2: not valid YAML: while parsing a flow sequence expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n---\nb: 1", "x.yaml, line 2: a second document begins here; one document a file is right"),
        ("a: 1\nb: \x00", "x.yaml, line 2: the character U+0000 is not allowed in YAML"),
        ("%YAML 1.1\n---\na: no", "x.yaml, line 1: '%YAML 1.1' is a directive; YAML 1.2 without directives is right"),
        ("a: !!python/name:exec x", "x.yaml, line 1: a: the tag '!!python/name:exec' is not known; a value without a tag is right"),
        ("a: !!set {b}", "x.yaml, line 1: a: the tag '!!set' is not known; a value without a tag is right"),
        ("a: !!str 5", "x.yaml, line 1: a: the tag '!!str' is not known; a value without a tag is right"),
        ("a: !!int '5'", "x.yaml, line 1: a: the tag '!!int' is not known; a value without a tag is right"),
        ("a: &x {b: 1}\nc: {<<: *x}", "x.yaml, line 2: c: '<<' (merging) is not part of YAML 1.2; write the keys out"),
        ('a:\n  b: "x\\ud800"', "x.yaml, line 2: a.b: \\ud800 is half a character; text that UTF-8 can encode is right"),
        ("a: *x", "x.yaml, line 1: not valid YAML: found undefined alias 'x'"),
        ("train.lr: 1", "x.yaml, line 1: the key 'train.lr' is no name; a name without dots is right (one level of the file a name)"),
        ("? 'a\n\n  b'\n: 1", "x.yaml, line 1: the key 'a\\nb' is no name; a name without dots is right (one level of the file a name)"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named_in_one_line(text: str, message: str) -> None:
    """Oracle: messages written out by hand."""
    assert refusal(text) == message


@pytest.mark.parametrize("key", ["1", "true", "~", "1.5", "[a]", "{a: b}"])
def test_a_key_that_is_no_text_is_refused(key: str) -> None:
    """Numbers and containers as keys would have no dotted path."""
    assert "a name is right" in refusal(f"b:\n  ? {key}\n  : 1\n")


def test_an_alias_is_read_as_a_copy() -> None:
    """Anchors are YAML; what is shared must not be shared by the trees of two trials."""
    tree = parse("a: &x {b: [1]}\nc: *x\n").tree
    assert tree == {"a": {"b": [1]}, "c": {"b": [1]}}
    assert tree["a"] is not tree["c"]


def test_aliases_cannot_fill_the_memory() -> None:
    """The billion-laughs file, a self-containing list and deep nesting end at a bound."""
    laughs = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    assert "more than 2000 values" in refusal(laughs)
    assert "40 levels" in refusal("a: &x [*x]")
    assert "more than 40 levels deep" in refusal("a: " + "[" * 5000)


def test_read_document_names_what_keeps_it_from_reading(tmp_path: Path) -> None:
    """A missing file, a folder, a file that is not UTF-8, one that is too large, one without permission."""
    (tmp_path / "latin.yaml").write_bytes(b"name: x\nimages: caf\xe9\n")
    (tmp_path / "large.yaml").write_bytes(b"# " + b"x" * 300_000)
    (tmp_path / "sealed.yaml").write_text("a: 1")
    (tmp_path / "sealed.yaml").chmod(0)
    expected = {
        "none.yaml": ": there is no such file; the path of a run's YAML file is right",
        "": ": is a folder; the path of a run's YAML file is right",
        "latin.yaml": ", line 2: is not UTF-8 text; a YAML file saved as UTF-8 is right",
        "large.yaml": ": is larger than 256 KiB; a run's YAML file is right",
    }
    if os.geteuid() != 0:  # root reads what it likes
        expected["sealed.yaml"] = ": cannot be read (Permission denied); a readable YAML file is right"
    for name, message in expected.items():
        with pytest.raises(UserError) as refused:
            read_document(tmp_path / name)
        assert str(refused.value) == f"{tmp_path / name}{message}"


def test_read_document_takes_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    """As editors on Windows save it."""
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfa: 1\r\nb: 2\r\n")
    document = read_document(tmp_path / "x.yaml")
    assert document.tree == {"a": 1, "b": 2}
    assert document.lines["b"] == 2


def test_substitute_puts_values_in_place_of_ranges_in_a_deep_copy() -> None:
    """Oracle: the tree written out by hand."""
    tree = parse("a: {int: [1, 5]}\nb: [{choice: [x, {c: 1}]}, {d: 2}]").tree
    choice = {"c": 1}
    copy = substitute(tree, {"a": 3, "b.0": choice})
    assert copy == {"a": 3, "b": [{"c": 1}, {"d": 2}]}
    assert copy["b"][0] is not choice
    assert copy["b"][1] is not tree["b"][1]
    assert tree["a"] == IntRange(1, 5)


@pytest.mark.parametrize("values", [{}, {"a": 1, "b": 2}])
def test_substitute_takes_a_value_for_every_range_and_no_other(values: dict[str, Any]) -> None:
    """A misspelt path must not leave a range in a trial."""
    with pytest.raises(KeyError):
        substitute({"a": IntRange(1, 5)}, values)


def test_value_at_follows_a_dotted_path() -> None:
    """Oracle: by hand."""
    tree = {"a": {"b": [1, {"c": 2}]}}
    assert value_at(tree, "a.b.1.c") == 2
    assert value_at(tree, "") is tree
    with pytest.raises(KeyError):
        value_at(tree, "a.b.2")


NASTY_TEXTS = [
    *("", "no", "null", "~", "true", "1e-5", ".5e3", "010", "1_000", "0b1", "0x1F", "2024-01-01", "12:30", ".inf", "<<", "="),
    *("a: b", "- a", "#x", "'", '"', "%YAML", "!tag", "&a", "*a", "@x", "`", "{", "[1"),
    *("é 🙂", " x ", "a\nb\n", "\t", "\u2028", "\x7f", "\ufeff", "x" * 500 + " y"),
]


def test_to_yaml_reads_back_to_the_same_tree() -> None:
    """Oracle: the tree itself; floats bit by bit, texts that look like other things, ranges, order, shared parts."""
    floats = [0.1, 1e-5, 5e-324, 1.7976931348623157e308, 1e16, 1e22, -0.0, 2 / 3, 3.0, 123456789012345678.0]
    shared = {"x": [1, 2]}
    tree = {
        "z": floats,
        "a": NASTY_TEXTS,
        "ranges": {
            "f": FloatRange(1e-7, 2 / 3),
            "l": FloatRange(1e-5, 3e-4, log=True),
            "i": IntRange(-3, 2**40),
            "c": Choice(("no", shared, None)),
        },
        "rest": [None, True, False, 0, -1, {}, [], [[]], shared, shared],
    }
    text = to_yaml(tree)
    read = parse(text).tree
    assert read == tree
    assert list(read) == list(tree)
    assert [value.hex() for value in read["z"]] == [value.hex() for value in floats]
    assert "&" not in text.replace("'&a'", "")
    assert to_yaml(read) == text


@pytest.mark.parametrize("text", NASTY_TEXTS)
def test_to_yaml_reads_back_any_key_that_is_a_name(text: str) -> None:
    """Oracle: the key itself."""
    if text and "." not in text and text.isprintable():
        assert parse(to_yaml({text: 1})).tree == {text: 1}


def test_importing_the_layer_loads_nothing_heavy() -> None:
    """Oracle: sys.modules of a fresh interpreter."""
    code = "import sys, fewshot_ray.spec; print([m for m in ('torch', 'numpy', 'ray', 'optuna', 'fsspec', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
