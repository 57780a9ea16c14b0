"""One line for every mistake, at every end of every range."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from fewshot_ray.errors import UserError
from fewshot_ray.spec.document import parse_document, ranges, to_yaml
from fewshot_ray.spec.ranges import Choice, FloatRange, IntRange
from fewshot_ray.spec.sections import FileSpec, Section
from fewshot_ray.spec.validate import endpoint_trees, file_spec, load

HEAD = {"name": "quick", "source": "{model: m}", "target": "{images: ten}", "method": "{sdft: search}"}


def spec_of(**sections: str) -> FileSpec:
    text = "\n".join(f"{key}: {value}" for key, value in {**HEAD, **sections}.items())
    return file_spec(parse_document(text, "x.yaml"))


def refusal(**sections: str) -> str:
    with pytest.raises(UserError) as refused:
        spec_of(**sections)
    message = str(refused.value)
    assert "\n" not in message
    return message.removeprefix("x.yaml, line ")


@pytest.mark.parametrize(
    ("section", "text", "message"),
    [
        ("train", "{lr: fast}", "5: train.lr: 'fast' is not a number; a number above 0 is right"),
        ("train", "{lr: 0}", "5: train.lr: 0 is too small; a number above 0 is right"),
        ("train", "\n  flip: 1", "6: train.flip: 1 is given; true or false is right"),
        ("train", "{steps: 300.0}", "5: train.steps: 300.0 is not a whole number; a whole number of at least 1 is right"),
        ("train", "{micro_batch: autom}",
         "5: train.micro_batch: 'autom' is not known; 'auto' or a whole number of at least 1 is right (did you mean 'auto'?)"),
        ("train", "{micro_batch: 0}", "5: train.micro_batch: 0 is too small; 'auto' or a whole number of at least 1 is right"),
        ("train", "{lr_schedule: cosin}",
         "5: train.lr_schedule: 'cosin' is not known; 'constant' or 'cosine' is right (did you mean 'cosine'?)"),
        ("train", "{betas: [0.9]}", "5: train.betas: [0.9] is too short; a list of 2, each a number of at least 0 and below 1 is right"),
        ("train", "{betas: [0.9, 2]}", "5: train.betas.1: 2 is too large; a number of at least 0 and below 1 is right"),
        ("train", "{gradient_clip: 0}", "5: train.gradient_clip: 0 is too small; a number above 0 or null is right"),
        ("train", "{params: {lora: 3}}", "5: train.params.lora: 3 is given; a mapping is right"),
        ("train", "", "5: train: nothing is given; a mapping with steps, batch_size, micro_batch, lr, ... is right"),
        ("train", "{ema: 3}", "5: train.ema: 3 is given; a mapping with decay, warmup is right"),
        ("train", "{learning_rate: 1}", "5: train.learning_rate: the key is not known; `lr: 1` is right"),
        ("train", "{stps: 3}", "5: train.stps: the key is not known; did you mean `steps: 3`?"),
        ("lr", "3", "5: lr: the key is not known here; did you mean `train: {lr: 3}`?"),
        ("zzz", "3", "5: zzz: the key is not known; "
         "known here: name, seed, source, target, method, train, evaluate, search, resources, storage"),
        ("target", "ten", "3: target: 'ten' is given; a mapping with images is right"),
        ("target", "{shots: 3}", "3: target.images: is missing; text is right"),
        ("target", "{images: a, holdout: {crossfit: 1}}",
         "3: target.holdout.crossfit: 1 is too small; a whole number of at least 2 is right"),
        ("target", "{images: a, holdout: {}}", "3: target.holdout.crossfit: is missing; a whole number of at least 2 is right"),
        ("target", "{images: a, holdout: 1.5}",
         "3: target.holdout: 1.5 is given; text, a whole number of at least 1 or a mapping with crossfit is right"),
        ("method", "[ant]", "4: method: ['ant'] is given; `method: {ant: {}}` is right"),
        ("method", "{ant: serach}",
         "4: method.ant: 'serach' is given; a mapping of the method's settings, 'search' or nothing (its defaults) is right"),
        ("source", "{}", "2: source: neither model nor build, adm or gan is given; "
         "model (a pre-trained pipeline), build (one from scratch), adm (an original checkpoint) or gan is right, one of them"),
        ("search", "{objectives: {}}", "5: search.objectives: {} is empty; a mapping of names to 'min' or 'max' is right"),
        ("search", "{constraints: {holdout_loss: < 3}}",
         "5: search.constraints.holdout_loss: '< 3' is not a bound; '<= 0.2' or '>= 0.1' is right"),
        ("search", "{confirm: {seeds: [1, 1]}}", "5: search.confirm.seeds: 1 is given twice; once is right"),
        ("storage", "''", "5: storage: '' is empty; text is right"),
        ("name", "a/b", "1: name: 'a/b' is no name; up to 100 letters, digits, '.', '_' and '-', the first a letter or digit, are right"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_line_field_value_and_remedy(section: str, text: str, message: str) -> None:
    """Oracle: messages written out by hand."""
    assert refusal(**{section: text}) == message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"source": "{build: {}, images: generated}"},
         "2: source.images: 'generated' needs a pre-trained source.model to generate them; a place is right with source.build"),
        ({"target": "{images: a, shots: 3}"},
         "3: target.holdout: crossfit: 5 is more folds than target.shots (3); {crossfit: 3} or fewer is right"),
        ({"target": "{images: a, shots: 1}"},
         "3: target.holdout: crossfit: 5 is more folds than target.shots (1); at least 2 shots, or a folder as holdout, is right"),
        ({"target": "{images: a, shots: 3, holdout: 3}"},
         "3: target.holdout: 3 of 3 shots kept back leaves none to train on; fewer than target.shots is right"),
        ({"train": "{steps: 20}"},
         "1: evaluate.every: 50 is above train.steps (20), so nothing would be evaluated; at most 20 is right"),
        ({"train": "{steps: {int: [20, 300]}}"},
         "1: evaluate.every: 50 is above train.steps (20), so nothing would be evaluated; at most 20 is right"),
        ({"target": "{images: 'https://me:secret@example.org/ten.zip'}"},
         "3: target.images: the URL contains a password, which would end up in files and logs; "
         "the store's own variables or files are right"),
        ({"train": "{lr_warmup_steps: 301}"}, "5: train.lr_warmup_steps: 301 is above train.steps (300); at most 300 is right"),
        ({"train": "{steps: {int: [60, 300]}, lr_warmup_steps: {int: [0, 100]}}"},
         "5: train.lr_warmup_steps: 100 is above train.steps (60); at most 60 is right"),
        ({"search": "{scheduler: {asha: {metric: holdout_loss, grace_steps: 120}}}"},
         "5: search.scheduler.asha.grace_steps: 120 is no multiple of evaluate.every (50); 100, for one, is right"),
        ({"search": "{scheduler: {asha: {metric: holdout_loss, grace_steps: 350}}}"},
         "5: search.scheduler.asha.grace_steps: 350 is above train.steps (300), so nothing would be stopped; at most 300 is right"),
        ({"search": "{scheduler: {asha: {metric: kid, grace_steps: 100}}}"},
         "5: search.scheduler.asha.metric: 'kid' is not among evaluate.metrics; one of holdout_loss is right, or add it there"),
        ({"search": "{confirm: {seeds: [1, 0]}}"},
         "5: search.confirm.seeds: 0 is the search's own seed, which chose the winner; other seeds are right"),
        ({"search": "{objectives: {holdoutloss: min}}"},
         "5: search.objectives.holdoutloss: 'holdoutloss' is not among evaluate.metrics; did you mean 'holdout_loss'?"),
        ({"search": "{objectives: {kid: min}}"},
         "5: search.objectives.kid: 'kid' is not among evaluate.metrics; one of holdout_loss is right, or add it there"),
    ],
)  # fmt: skip
def test_fields_that_do_not_fit_each_other_are_named(sections: dict[str, str], message: str) -> None:
    """Oracle: messages written out by hand; among them fields that clash at one end of a range only."""
    assert refusal(**sections) == message


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": "{lr: {float: [0, 1]}}"}, "5: train.lr: 0.0 (of float 0.0 .. 1.0) is too small; a number above 0 is right"),
        ({"train": "{ema: {decay: {float: [0.5, 1]}}}"},
         "5: train.ema.decay: 1.0 (of float 0.5 .. 1.0) is too large; a number of at least 0 and below 1 is right"),
        ({"train": "{steps: {float: [100, 200]}}"},
         "5: train.steps: 100.0 (of float 100.0 .. 200.0) is not a whole number; a whole number of at least 1 is right"),
        ({"train": "{precision: {choice: [fp32, fp16, bf16]}}"},
         "5: train.precision: 'fp16' (of choice 'fp32', 'fp16', 'bf16') is not known; 'fp32' or 'bf16' is right (did you mean 'bf16'?)"),
        ({"seed": "{int: [1, 3]}"}, "5: seed: int 1 .. 3 is a range, and trials that differ in seed would not be comparable; "
         "ranges below method and train are right"),
        ({"evaluate": "{every: {int: [1, 3]}}"}, "5: evaluate.every: int 1 .. 3 is a range, and trials that differ in evaluate would not "
         "be comparable; ranges below method and train are right"),
    ],
)  # fmt: skip
def test_every_end_of_a_range_must_be_valid_and_the_range_stand_where_it_may(sections: dict[str, str], message: str) -> None:
    """Oracle: messages written out by hand."""
    assert refusal(**sections) == message


def test_all_errors_of_a_file_are_said_a_line_each_in_its_order() -> None:
    """Oracle: messages written out by hand; then those between fields, which come when each field by itself is right."""
    with pytest.raises(UserError) as refused:
        spec_of(seed="{int: [1, 3]}", train="\n  stps: 3\n  lr: x\n  flip: 3", search="{trials: 0}")
    assert [line.partition(": ")[0] + ": " + line.split(": ")[1] for line in refused.value.lines] == [
        "x.yaml, line 5: seed",
        "x.yaml, line 7: train.stps",
        "x.yaml, line 8: train.lr",
        "x.yaml, line 9: train.flip",
        "x.yaml, line 10: search.trials",
    ]
    with pytest.raises(UserError) as refused:
        spec_of(train="{steps: 20}", search="{constraints: {memorisation: <= 0.2}, objectives: {kid: min}}")
    assert [line.split(": ")[1] for line in refused.value.lines] == [
        "evaluate.every",
        "search.objectives.kid",
        "search.constraints.memorisation",
    ]


def test_a_thousand_errors_are_cut_to_twenty() -> None:
    """Oracle: the count."""
    with pytest.raises(UserError) as refused:
        spec_of(train="{" + ", ".join(f"zz{index}: 1" for index in range(1000)) + "}")
    assert len(refused.value.lines) == 21
    assert refused.value.lines[-1] == "x.yaml: and 980 more errors"


def test_a_file_with_ranges_is_returned_at_their_first_ends() -> None:
    """Oracle: by hand; the document itself keeps its ranges."""
    text = "{lr: {log: [1e-5, 3e-4]}, params: {lora: {rank: {choice: [4, 8]}}}, betas: [{float: [0.5, 0.9]}, 0.999]}"
    spec = spec_of(train=text, method="{ant: {noise_steps: {int: [1, 20]}}, sdft: }")
    assert (spec.train.lr, spec.train.params, spec.train.betas) == (1e-5, {"lora": {"rank": 4}}, [0.5, 0.999])
    assert spec.method == {"ant": {"noise_steps": 1}, "sdft": None}


def test_a_spec_written_out_reads_back() -> None:
    """Oracle: the spec itself; a trial's spec.yaml is made so."""
    spec = spec_of(train="{lr: 3e-5}", search="{scheduler: {asha: {metric: holdout_loss, grace_steps: 100}}}")
    assert file_spec(parse_document(to_yaml(spec.model_dump()), "spec.yaml")) == spec


def test_endpoint_trees_bring_every_end_together_with_every_other_low_and_high() -> None:
    """Oracle: all pairs of ends of two ranges, by hand."""
    tree = {"a": IntRange(1, 2), "b": FloatRange(3, 4), "c": Choice(("x", "y", "z"))}
    trees = list(endpoint_trees(tree))
    assert {(t["a"], t["b"]) for t in trees} == {(1, 3.0), (1, 4.0), (2, 3.0), (2, 4.0)}
    assert {(t["a"], t["c"]) for t in trees} == {(a, c) for a in (1, 2) for c in "xyz"}
    assert not any(ranges(t) for t in trees)
    assert list(endpoint_trees({"a": 1})) == [{"a": 1}]
    assert list(endpoint_trees({"a": IntRange(1, 2)})) == [{"a": 1}, {"a": 2}]


class NoiseConfig(Section):
    """A method's settings, as its owner would declare them."""

    noise_steps: Annotated[int, Field(ge=0, le=100)] = 10
    kind: Literal["sample", "batch"] = "sample"


def test_a_method_loads_its_own_settings_at_its_place_in_the_file() -> None:
    """Oracle: by hand; line and dotted field are those of the whole file."""
    document = parse_document("method:\n  ant:\n    noise_stps: 3\n", "x.yaml")
    with pytest.raises(
        UserError, match=r"^x\.yaml, line 3: method\.ant\.noise_stps: the key is not known; did you mean `noise_steps: 3`\?$"
    ):
        load(NoiseConfig, document.tree["method"]["ant"], document=document, path="method.ant")


def test_load_does_not_take_a_range_for_a_value() -> None:
    """A range left in a trial's spec is a mistake of ours that must not pass."""
    document = parse_document("noise_steps: {int: [1, 5]}", "x.yaml")
    with pytest.raises(UserError, match="noise_steps: "):
        load(NoiseConfig, document.tree, document=document)


class Plain(BaseModel):
    """A model that is no Section, with types the sections do not use."""

    pair: tuple[int, int] = (1, 2)
    names: dict[str, Any] = {}
    many: list[dict[str, int]] = []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pair: 3", "pair: 3 is given; a list, each a whole number is right"),
        ("names: 3", "names: 3 is given; a mapping is right"),
        ("many: [{a: x}]", "many.0.a: 'x' is not a whole number; a whole number is right"),
    ],
)
def test_other_types_are_described_too(text: str, message: str) -> None:
    """Oracle: by hand."""
    document = parse_document(text, "x.yaml")
    with pytest.raises(UserError) as refused:
        load(Plain, document.tree, document=document)
    assert str(refused.value) == f"x.yaml, line 1: {message}"
