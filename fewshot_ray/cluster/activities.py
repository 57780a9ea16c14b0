"""Passes the activities of a sweep's workers between evaluations to the driver, through its messenger and without waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from fewshot_ray.trial.activity import Activity

Tell = Callable[[Activity], None]


def teller(messenger: Any | None, trial_id: str) -> Tell:
    """A function with which a worker reports its activity to the messenger, without waiting; without a messenger it does nothing."""
    if messenger is None:
        return lambda activity: None

    def tell(activity: Activity) -> None:
        messenger.report.remote(trial_id, activity)

    return tell


class Activities:
    """Shows the driver the workers' activities, at each call of `look`."""

    def __init__(self, messenger: Any, show: Callable[[Mapping[str, Activity]], None]) -> None:
        self.messenger = messenger
        self.show = show
        self._asked: Any = messenger.news.remote()

    def look(self) -> None:
        """Show the activities reported since the last look, where the messenger has answered, and ask it again."""
        if not ray.wait([self._asked], timeout=0)[0]:
            return
        try:
            news = ray.get(self._asked)
        except RayError:  # the messenger has ended with Ray, or with the sweep
            return
        self._asked = self.messenger.news.remote()
        if news:
            self.show(news)
