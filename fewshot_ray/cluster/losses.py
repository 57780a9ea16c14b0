"""What a trial's worker was lost to: a fault of its own, or its machine's end, which says nothing against the trial."""

from __future__ import annotations

from collections.abc import Iterator

from ray.exceptions import ActorUnavailableError, NodeDiedError, OwnerDiedError, RayActorError
from ray.train import PreemptionError

from fewshot_ray.trial.trial import SavedAndEndedError

_MACHINE_ERRORS = (NodeDiedError, OwnerDiedError, ActorUnavailableError, PreemptionError, SavedAndEndedError)
_MACHINE_WORDS = ("node has died", "node died", "node has crashed", "node was terminated", "node is dead")
"""Ray has no class for an actor that died with its node."""


def of_the_machine(error: BaseException | None) -> bool:
    """Whether a machine went away, or told its workers that it would; one of several is enough, the others' workers fail with it."""
    return any(_is_of_the_machine(cause) for cause in causes(error))


def error_line(error: BaseException | None) -> str:
    """What happened, on one line."""
    if error is None:
        return "unknown"
    found = list(causes(error))
    # What it began with: the innermost, or what the machine did to one of several workers.
    cause = next((cause for cause in found if _is_of_the_machine(cause)), found[-1])
    lines = [line.strip() for line in str(cause).strip().splitlines()]
    telling = next((line for line in lines if _has_machine_words(line)), next(iter(lines), ""))
    return f"{type(cause).__name__}: {telling.split('. ')[0]}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what is wrapped in it: by Ray (what a remote call raised) and by Ray Train (what its workers did)."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        waiting += [getattr(one, "cause", None), *getattr(one, "worker_failures", {}).values(), one.__cause__]


def _is_of_the_machine(error: BaseException) -> bool:
    if isinstance(error, _MACHINE_ERRORS) or (isinstance(error, RayActorError) and error.preempted):
        return True
    return isinstance(error, RayActorError) and _has_machine_words(str(error))


def _has_machine_words(text: str) -> bool:
    return any(words in text for words in _MACHINE_WORDS)
