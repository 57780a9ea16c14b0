"""Choices whose alternatives hold ranges, values that depend on a choice, and which of the ranges a trial has."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fewshot_ray.errors import UserError
from fewshot_ray.spec.alternatives import Alternatives, By, labels
from fewshot_ray.spec.document import Document, parse_document, substitute, to_yaml
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange, same
from fewshot_ray.spec.space import Space, flat_trees
from fewshot_ray.spec.validate import endpoint_trees
from fewshot_ray.trial.fields import checked_document

HEAD = "name: s\nsource: {model: m}\ntarget: {images: ten}\n"
METHODS = "method: {choice: [ant, [ant, sdft], {ant: {noise_steps: {int: [1, 10]}}, sdft: search}, finetune]}\n"
RATES = "{by: train.params, full: {log: [1.0e-5, 1.0e-4]}, lora: {log: [1.0e-4, 1.0e-3]}}"
TRAIN = f"train:\n  lr: {RATES}\n  params: {{choice: [full, {{lora: {{rank: {{choice: [4, 16]}}}}}}]}}\n"
SEARCH = "search: {trials: 9}\n"


def parse(text: str) -> Document:
    return parse_document(HEAD + text, "x.yaml")


def refusal(text: str) -> list[str]:
    """The lines of the error, without the file's name; line 4 is the first after the head."""
    with pytest.raises(UserError) as refused:
        checked_document(HEAD + text, "x.yaml")
    return [line.removeprefix("x.yaml, line ") for line in str(refused.value).splitlines()]


def space(text: str) -> Space:
    return Space(parse(text).tree)


def test_a_choice_of_methods_is_one_among_mappings() -> None:
    """Oracle: written out by hand; a name stands for the method's defaults, a list of names for a combination."""
    methods = parse(METHODS).tree["method"]
    assert isinstance(methods, Alternatives)
    assert methods.trees == (
        {"ant": {}},
        {"ant": {}, "sdft": {}},
        {"ant": {"noise_steps": IntRange(1, 10)}, "sdft": "search"},
        {"finetune": {}},
    )
    assert methods.values == ("ant", "ant+sdft (2)", "ant+sdft (3)", "finetune")


def test_what_is_written_is_read_again() -> None:
    """Oracle: the tree itself, with its alternatives and what depends on them."""
    tree = parse(METHODS + TRAIN).tree
    assert same(parse_document(to_yaml(tree), "y").tree, tree)
    assert isinstance(tree["train"]["lr"], By)


def test_a_trial_has_the_ranges_of_its_alternative_alone() -> None:
    """Oracle: by hand; the choice comes first though the file has it last."""
    found = space(TRAIN)
    assert [parameter.path for parameter in found.parameters] == ["train.params", "train.params.lora.rank", "train.lr", "train.lr"]
    drawn = {
        label: found.choose(lambda one, label=label: label if one.path == "train.params" else one.range.endpoints()[0])
        for label in ("full", "lora")
    }
    assert drawn == {
        "full": {"train.params": "full", "train.lr": 1e-5},
        "lora": {"train.params": "lora", "train.params.lora.rank": 4, "train.lr": 1e-4},
    }
    trees = {label: substitute(parse(TRAIN).tree, values)["train"] for label, values in drawn.items()}
    assert trees == {"full": {"lr": 1e-5, "params": "full"}, "lora": {"lr": 1e-4, "params": {"lora": {"rank": 4}}}}
    assert found.is_complete(drawn["lora"])
    assert not found.is_complete({**drawn["full"], "train.params.lora.rank": 4})
    with pytest.raises(KeyError, match=r"train\.params\.lora\.rank"):
        substitute(parse(TRAIN).tree, {**drawn["full"], "train.params.lora.rank": 4})
    with pytest.raises(KeyError, match=r"train\.params\.lora\.rank"):
        substitute(parse(TRAIN).tree, {"train.params": "lora", "train.lr": 1e-4})


def test_alternatives_share_a_parameter_of_the_same_range() -> None:
    """Oracle: by hand. The same range is one parameter, so that a sampler learns from both; others have names of their own."""
    steps = "{noise_steps: {int: [1, %s]}}"
    text = f"method: {{choice: [{{ant: {steps % 10}}}, {{ant: {steps % 10}, sdft: {{}}}}, {{ant: {steps % 5}, sadm: {{}}}}, sdft]}}\n"
    shared, other = "method.ant.noise_steps[ant]", "method.ant.noise_steps[ant+sadm]"
    found = space(text)
    assert [parameter.name for parameter in found.parameters] == ["method", shared, shared, other]
    assert {parameter.path for parameter in found.parameters} == {"method", "method.ant.noise_steps"}
    assert found.where(shared) == " where method is ant or ant+sdft"
    preset = space(text.replace("[1, 5]", "[1, 10], preset: 3"))
    assert preset.by_name.keys() == {"method", "method.ant.noise_steps"}


def test_the_number_of_configurations() -> None:
    """Oracle: counted by hand: ant, sdft, and ten of ant's steps with each of two batch sizes; any float range makes it infinite."""
    methods = "method: {choice: [ant, sdft, {ant: {noise_steps: {int: [1, 10]}}}]}\n"
    assert space(methods + "train: {batch_size: {choice: [2, 4]}}\n").count == 2 * (1 + 1 + 10)
    assert space(TRAIN).count == math.inf
    assert space("train: {lr: 0.1}\n").count == 1


def test_alternatives_may_have_alternatives() -> None:
    """Oracle: by hand, two levels deep; the lower one exists only where the upper one is chosen."""
    found = space("train: {params: {choice: [full, {lora: {rank: {choice: [4, 16]}, alpha: {choice: [{a: {int: [1, 2]}}, 3]}}}]}}\n")
    assert [parameter.path.removeprefix("train.params") for parameter in found.parameters] == [
        "",
        ".lora.rank",
        ".lora.alpha",
        ".lora.alpha.a",
    ]
    assert found.parameters[-1].conditions == (("train.params", "lora"), ("train.params.lora.alpha", "a"))
    assert found.parameters[-1].source == "train.params.choice.1.lora.alpha.choice.0.a"
    assert [tree["train"]["params"] for tree in flat_trees(found.tree)] == [
        "full", {"lora": {"rank": Choice((4, 16)), "alpha": {"a": IntRange(1, 2)}}}, {"lora": {"rank": Choice((4, 16)), "alpha": 3}},
    ]  # fmt: skip
    assert found.count == 1 + 2 * (2 + 1)


def test_a_path_may_have_alternatives_in_one_alternative_alone() -> None:
    """Oracle: counted by hand: one, two, and three configurations."""
    found = space("train: {params: {choice: [full, {lora: {rank: {choice: [{a: {int: [1, 2]}}]}}}, {lora: {rank: {int: [1, 3]}}}]}}\n")
    assert found.count == 1 + 2 + 3


def test_the_ends_are_those_of_each_alternative() -> None:
    """Oracle: by hand."""
    trees = [tree["train"] for tree in endpoint_trees(parse(TRAIN).tree)]
    assert {tree["lr"] for tree in trees if tree["params"] == "full"} == {1e-5, 1e-4}
    assert {(tree["lr"], tree["params"]["lora"]["rank"]) for tree in trees if tree["params"] != "full"} == {
        (1e-4, 4), (1e-4, 16), (1e-3, 4), (1e-3, 16),
    }  # fmt: skip


def test_by_takes_a_choice_of_plain_values_and_a_fixed_value_too() -> None:
    """Oracle: by hand."""
    chosen = space(f"train: {{lr: {RATES}, params: {{choice: [full, lora]}}}}\n")
    assert chosen.choose(lambda one: "lora" if one.path == "train.params" else one.range)["train.lr"] == FloatRange(1e-4, 1e-3, log=True)
    fixed = parse(f"train: {{lr: {RATES}, params: {{lora: {{rank: 2}}}}}}\n").tree
    assert [parameter.range for parameter in Space(fixed).parameters] == [FloatRange(1e-4, 1e-3, log=True)]
    assert substitute(fixed, {"train.lr": 1e-4})["train"] == {"lr": 1e-4, "params": {"lora": {"rank": 2}}}


def test_labels() -> None:
    """Oracle: by hand; values that Python takes for equal, or that look alike, have labels of their own."""
    assert labels(["full", {"lora": {}}, {"ant": {}, "sdft": {}}, 8]) == ("full", "lora", "ant+sdft", "8")
    assert labels([1, True, 1.0, "1", "true"]) == ("1 (1)", "true (2)", "1.0", "1 (4)", "true (5)")
    assert labels(["a", "a", "a (1)"]) == ("a (1)", "a (2)", "a (1) (3)")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [(1, 1, True), (1, True, False), (1, 1.0, False), ([1], [True], False), ({"a": 1}, {"a": 1.0}, False),
     ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
     (Choice((1,)), Choice((True,)), False), (IntRange(1, 2), IntRange(1, 2), True), (None, False, False), ([1], [1, 2], False)],
)  # fmt: skip
def test_same_is_what_a_file_takes_for_the_same(a: Any, b: Any, expected: bool) -> None:
    """Oracle: by hand."""
    assert same(a, b) is expected


def test_settings_that_python_takes_for_equal_are_two_alternatives() -> None:
    """Oracle: `{choice: [[1], [true]]}` is no choice with a value given twice."""
    assert Choice(([1], [True], {"a": 1}, {"a": 1.0})).count == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (METHODS.replace("ant, [", "atn, ["), "4: method.atn: there is no such method; "),
        ("method: {choice: []}\n", "4: method: a choice needs at least one value; {choice: [a, b]} is right"),
        ("method: {choice: [ant, ant]}\n", "4: method: 'ant' is given twice in the choice; once is right"),
        ("method: {choice: [ant, {ant: {}}]}\n", "4: method: {ant: {}} is given twice in the choice; once is right"),
        ("method: {choice: [[ant, sdft], [sdft, ant]]}\n", "4: method: {sdft: {}, ant: {}} is given twice in the choice; once is right"),
        ("method: {choice: [[ant, ant]]}\n", "4: method: 'ant' is given twice in ['ant', 'ant']; once is right"),
        ("method: {choice: [ant, 3]}\n", "4: method: 3 is given in the choice; "
         "a method's name, a list of names or a mapping of methods to settings is right there"),
        ("method: {choice: [ant, [ant, {sdft: search}]]}\n", "4: method: ['ant', {sdft: 'search'}] is given in the choice; "),
        ("method:\n  choice:\n  - ant\n  - finetune: {noise_steps: {int: [1, 3]}}\n",
         "7: method.finetune.noise_steps: the key is not known, and there are no settings here; leave it out "
         "(alternative 'finetune' of method)"),
        ("method:\n  choice:\n  - ant: {noise_steps: {int: [-1, 3]}}\n  - sdft\n",
         "6: method.ant.noise_steps: -1 (of int -1 .. 3) is too small; "
         "a whole number of at least 0 and at most 1000 is right (alternative 'ant' of method)"),
        ("method: {ant: }\n" + TRAIN.replace("rank", "rang"), "7: train.params.lora.rang: the key is not known; "),
        ("method: {ant: }\n" + TRAIN.replace("lora: {log", "oft: {log"),
         "6: train.lr: it has no value for 'lora'; one for each of 'full', 'lora' is right"),
        ("method: {ant: }\n" + TRAIN.replace("train.params,", "train.parms,"),
         "6: train.lr: `by: train.parms` is given, and the file chooses nothing there; "),
        ("method: {choice: [ant, sdft]}\ntrain: {lr: {by: method, ant: 0.1, sdft: 0.2}}\n",
         "5: train.lr: it has no value for 'finetune' (finetune is the sweep's second trial); "
         "one for each of 'ant', 'sdft', 'finetune' is right"),
        ("method: {ant: }\ntrain: {lr: {choice: [0.1, {log: [0.1, 1]}]}}\n",
         "5: train.lr: log 0.1 .. 1.0 stands in a choice by itself; values, and mappings with ranges in them, are right there"),
        ("method: {ant: }\ntrain: {lr: {float: [{int: [1, 2]}, 2]}}\n",
         "5: train.lr: a range is inside float; plain values are right there"),
        ("method: {ant: }\nevaluate: {every: {choice: [50, {a: {int: [1, 2]}}]}}\n",
         "5: evaluate.every: choice '50', 'a' is a range, and trials that differ in evaluate would not be comparable; "
         "ranges below method and train are right"),
        ("method: {ant: }\n" + TRAIN + "search: {trials: 9, sampler: nsga2}\n",
         "8: search.sampler: 'nsga2' is given, but only some trials have train.params.lora.rank, and Optuna draws such values at random "
         "with NSGA-II, without regard to the others; 'tpe', 'gp', 'qmc' or 'random' is right"),
        ("method: {ant: }\nsearch: {sampler: sobol}\n",
         "5: search.sampler: 'sobol' is not known; 'tpe' or 'gp' or 'nsga2' or 'qmc' or 'random' is right"),
    ],
)  # fmt: skip
def test_a_mistake_in_alternatives_is_one_line_that_names_it(text: str, message: str) -> None:
    """Oracle: messages written out by hand: the alternative's line, what is given, and what would be right."""
    said = refusal(text if "\nsearch" in text else text + SEARCH)
    assert any(line.startswith(message) for line in said), said
    assert len(said) == 1, said


def test_a_mistake_in_every_alternative_is_said_once() -> None:
    """Oracle: by hand; it isn't the alternative's."""
    assert refusal(METHODS + "train: {lr: fast}\n" + SEARCH) == ["5: train.lr: 'fast' is not a number; a number above 0 is right"]


def test_too_many_combinations_are_refused() -> None:
    """Oracle: eight alternatives at each of three places are 512."""
    names = [f"p{index}" for index in range(8)]
    eight = "{choice: [" + ", ".join(f"{{{name}: {{int: [1, 2]}}}}" for name in names) + "]}"
    said = refusal(f"method: {{sdft: {{a: {eight}, b: {eight}, c: {eight}}}}}\n" + SEARCH)
    assert said == ["4: method.sdft.a: there are more than 500 combinations of alternatives; fewer are right"]


def test_what_is_to_be_searched_needs_a_number_of_trials() -> None:
    """Oracle: as for any range."""
    assert any(
        "method: is to be searched, and nothing says with how many trials" in line for line in refusal("method: {choice: [ant, sdft]}\n")
    )
