"""Ranges as values of their own."""

import math

import pytest

from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, Range, range_of


def test_range_of_makes_the_range_that_its_key_names() -> None:
    """Oracle: the ranges built by hand."""
    assert range_of("float", [0, 10]) == FloatRange(0.0, 10.0)
    assert range_of("log", [1e-5, 3e-4]) == FloatRange(1e-5, 3e-4, log=True)
    assert range_of("int", [1, 20]) == IntRange(1, 20)
    assert range_of("choice", ["full", 8, None]) == Choice(("full", 8, None))


def test_float_range_turns_whole_ends_into_floats() -> None:
    """A trial's value keeps its type whether the file says 0 or 0.0."""
    assert [type(end) for end in FloatRange(0, 10).endpoints()] == [float, float]


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("float", [3, 1], "low=3, high=1"),
        ("float", [1, 1.0], "low must be below high"),
        ("float", [1], "1 values are given; two, low and high"),
        ("float", ["a", 1], "'a' is not a finite number"),
        ("float", [False, 1], "false is not a finite number"),
        ("float", [0.0, math.inf], "inf is not a finite number"),
        ("float", [math.nan, 1], "nan is not a finite number"),
        ("float", [[1], 2], r"\[1\] is not a finite number"),
        ("log", [0, 1], "low=0: a log range must begin above 0"),
        ("log", [-1, 1], "low=-1: a log range must begin above 0"),
        ("log", [None, 1], "nothing is not a finite number"),
        ("int", [1, 20.0], r"20\.0 is not a whole number"),
        ("int", [True, 2], "true is not a whole number"),
        ("int", [2, 2], "low=2, high=2"),
        ("int", [1, 2, 3], "3 values are given"),
        ("choice", [], "at least one value"),
        ("choice", ["a", "b", "a"], "'a' is given twice"),
    ],
)
def test_a_range_that_is_none_is_refused_in_one_line(kind: str, values: list[object], message: str) -> None:
    """Each refusal names what was given and shows what would be right."""
    with pytest.raises(ValueError, match=message) as refused:
        range_of(kind, values)
    assert "\n" not in str(refused.value)
    assert "right" in str(refused.value)


def test_contains_includes_the_ends_and_minds_types() -> None:
    """Oracle: written out by hand."""
    assert FloatRange(0, 1).contains(0)
    assert FloatRange(0, 1).contains(1.0)
    assert not FloatRange(0, 1).contains(1.0000001)
    assert not FloatRange(0, 1).contains(True)
    assert not FloatRange(0, 1).contains("0.5")
    assert IntRange(1, 3).contains(3)
    assert not IntRange(1, 3).contains(2.0)
    assert not IntRange(0, 3).contains(True)
    assert Choice((1, "a")).contains(1)
    assert not Choice((1, "a")).contains(True)
    assert not Choice((1, "a")).contains(1.0)


def test_a_choice_tells_one_from_true_and_from_one_point_zero() -> None:
    """Python's == does not; a file does."""
    assert Choice((1, True, 1.0)).endpoints() == (1, True, 1.0)


@pytest.mark.parametrize(
    ("range_", "text"),
    [
        (FloatRange(1e-5, 3e-4, log=True), "log 1e-05 .. 0.0003"),
        (FloatRange(0, 10), "float 0.0 .. 10.0"),
        (IntRange(1, 20), "int 1 .. 20"),
        (Choice(("full", None, True, 2)), "choice 'full', nothing, true, 2"),
    ],
)
def test_describe_and_to_yaml_name_the_range(range_: Range, text: str) -> None:
    """Oracle: written out by hand; to_yaml is undone by range_of."""
    assert range_.describe() == text
    [(kind, values)] = range_.to_yaml().items()
    assert range_of(kind, values) == range_


@pytest.mark.parametrize("range_", [FloatRange(0.5, 2), IntRange(1, 3), Choice(("a", {"lora": {"rank": 4}}))])
def test_endpoints_lie_in_the_range(range_: Range) -> None:
    """What a file is validated at is what a trial may get."""
    assert all(range_.contains(end) for end in range_.endpoints())


@pytest.mark.parametrize(
    ("kind", "values", "preset", "right"),
    [("log", [1e-6, 1e-4], 1e-5, None), ("int", [1, 20], 3, None), ("float", [0, 1], 2, "outside"), ("int", [1, 5], 2.5, "outside"),
     ("choice", ["a", "b"], "b", "first value")],
)  # fmt: skip
def test_a_range_may_name_its_preset(kind: str, values: list[object], preset: object, right: str | None) -> None:
    """Oracle: by hand; to_yaml is undone by range_of."""
    if right is not None:
        with pytest.raises(ValueError, match=right):
            range_of(kind, values, preset)
        return
    range_ = range_of(kind, values, preset)
    assert not isinstance(range_, Choice)
    assert range_.preset == preset
    assert range_.to_yaml() == {kind: values, "preset": preset}
