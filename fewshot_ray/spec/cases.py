"""Checks a file whose ranges depend on alternatives: each combination of alternatives is checked as a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from fewshot_ray.spec.alternatives import Alternatives, By, is_searched, label_of, labels
from fewshot_ray.spec.document import Document
from fewshot_ray.spec.problems import Problem
from fewshot_ray.spec.ranges import Choice
from fewshot_ray.spec.space import METHOD, MOST_CASES, PLAIN, Space, decisions, dependents
from fewshot_ray.spec.tree import label_at, partly, ranges, value_at
from fewshot_ray.spec.wording import join, nearest, show


@dataclass(frozen=True)
class Case:
    """A document with one of its alternatives in place of each choice."""

    document: Document
    chosen: Mapping[str, str]
    """Labels by the choices' dotted paths."""


def over_cases(document: Document, find: Callable[[Document], Iterable[Problem]]) -> list[Problem]:
    """The problems that `find` finds in each case of the document, once each; those of some cases only name the alternative."""
    cases = _cases(document)
    if len(cases) == 1:
        return list(find(cases[0].document))
    found: dict[tuple[str, str], list[tuple[Case, Problem]]] = {}
    for case in cases:
        for problem in dict.fromkeys(find(case.document)):
            found.setdefault((problem.path, problem.message), []).append((case, problem))
    return [_placed(hits, len(cases)) for hits in found.values()]


def space_problems(document: Document) -> list[Problem]:
    """Errors of what decides which ranges a trial has; without any the document has cases."""
    by = [problem for path, _, one in dependents(document.tree) for problem in _by_problems(document.tree, path, one)]
    if by:
        return by
    space = Space(document.tree)
    if len(decisions(space)) > MOST_CASES:
        first = next(parameter.path for parameter in space.parameters if isinstance(parameter.range, Alternatives))
        return [Problem(first, f"there are more than {MOST_CASES} combinations of alternatives; fewer are right")]
    return [*_misplaced(document.tree), *_sampler_problems(document, space)]


def _misplaced(tree: Mapping[str, Any]) -> Iterator[Problem]:
    for path, range_ in ranges(tree).items():
        if path != METHOD and not path.startswith((f"{METHOD}.", "train.")):
            reason = f"trials that differ in {path.partition('.')[0]} would not be comparable"
            yield Problem(path, f"{range_.describe()} is a range, and {reason}; ranges below method and train are right")


def _sampler_problems(document: Document, space: Space) -> Iterator[Problem]:
    search = document.tree.get("search")
    sampler = search.get("sampler") if isinstance(search, dict) else None
    some = next((parameter for parameter in space.parameters if parameter.conditions), None)
    if some is not None and sampler == "nsga2":
        yield Problem(
            "search.sampler",
            f"'nsga2' is given, but only some trials have {some.path}, and Optuna draws such values at random with NSGA-II, without regard "
            "to the others; 'tpe', 'gp', 'qmc' or 'random' is right",
        )


def _by_problems(tree: Mapping[str, Any], path: str, by: By) -> Iterator[Problem]:
    try:
        decides = value_at(tree, by.on)
    except KeyError:
        decides = None
    if decides is None or (is_searched(decides) and not isinstance(decides, Choice)):
        yield Problem(path, f"`by: {by.on}` is given, and the file chooses nothing there; the dotted path of a choice in it is right")
        return
    known = labels(decides.values) if isinstance(decides, Choice) else (label_of(decides),)
    beside = (PLAIN,) if by.on == METHOD and PLAIN not in known else ()
    needed = [*known, *(beside if _has_plain_trial(tree) else ())]
    if missing := [label for label in needed if label not in by.branches]:
        why = f" ({PLAIN} is the sweep's second trial)" if PLAIN in missing and beside else ""
        yield Problem(path, f"it has no value for {_listed(missing)}{why}; one for each of {_listed(needed)} is right")
    for label in by.branches if isinstance(decides, Choice) and not missing else ():
        if label not in (*known, *beside):
            near = nearest(label, known)
            hint = f" (did you mean {show(near)}?)" if near else ""
            yield Problem(join(path, label), f"{by.on} has no alternative {show(label)}; {_listed(known)} {_are(known)} right{hint}")


def _has_plain_trial(tree: Mapping[str, Any]) -> bool:
    search = tree.get("search")
    return not isinstance(search, dict) or search.get("include_plain") is not False


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(show, names))


def _are(names: tuple[str, ...]) -> str:
    return "are" if len(names) > 1 else "is"


def _cases(document: Document) -> list[Case]:
    space = Space(document.tree)
    if not space.is_conditional and not any(isinstance(parameter.range, Alternatives) for parameter in space.parameters):
        return [Case(document, {})]
    found = []
    for chosen in decisions(space):
        flat = replace(document, tree=partly(document.tree, chosen), lines=_lines(document, space, chosen))
        found.append(Case(flat, {path: space.label(path, chosen) for path in chosen}))
    return found


def _lines(document: Document, space: Space, chosen: Mapping[str, Any]) -> dict[str, int]:
    """The lines of a case's paths: those of the alternatives that are chosen in it."""
    places = {}
    for parameter in space.having(chosen):
        if isinstance(parameter.range, Alternatives) and parameter.path in chosen:
            index = parameter.range.values.index(chosen[parameter.path])
            places[f"{parameter.source}.choice.{index}"] = parameter.path
    for path, source, by in dependents(document.tree):
        places[join(source, label_at(document.tree, by.on, chosen))] = path
    lines = dict(document.lines)
    for source, path in places.items():
        for at, line in document.lines.items():
            if at == source or at.startswith(f"{source}."):
                lines[path + at.removeprefix(source)] = line
    return lines


def _placed(hits: list[tuple[Case, Problem]], cases: int) -> Problem:
    case, problem = hits[0]
    line = problem.line or case.document.line(problem.path)
    if len(hits) == cases:
        return problem._replace(line=line)
    shared = {on: label for on, label in case.chosen.items() if all(other.chosen.get(on) == label for other, _ in hits)}
    named = " and ".join(f"{show(label)} of {on}" for on, label in (shared or case.chosen).items())
    return problem._replace(message=f"{problem.message} (alternative {named})", line=line)
