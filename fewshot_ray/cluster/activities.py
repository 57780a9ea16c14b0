"""What the workers of a sweep are at between two evaluations: told to the driver's messenger, and read there without waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from fewshot_ray.trial.activity import Activity

Tell = Callable[[Activity], None]


def teller(messenger: Any | None, trial_id: str) -> Tell:
    """For a worker: passes on what it is at, without waiting; without a messenger nobody hears of it."""
    if messenger is None:
        return lambda activity: None

    def tell(activity: Activity) -> None:
        messenger.report.remote(trial_id, activity)

    return tell


class Activities:
    """For the driver: `look` now and then."""

    def __init__(self, messenger: Any, show: Callable[[Mapping[str, Activity]], None]) -> None:
        self.messenger = messenger
        self.show = show
        self._asked: Any = messenger.news.remote()

    def look(self) -> None:
        """Show what has been told since the last look, where the messenger has answered by now, and ask it again."""
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        try:
            news = ray.get(self._asked)
        except RayError:  # it is gone with Ray, or with the sweep
            return
        self._asked = self.messenger.news.remote()
        if news:
            self.show(news)
