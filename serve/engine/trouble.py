"""What does not work at the moment: said when it begins and when it is over, not at every try in between."""

import logging

from serve.errors import TenonError

log = logging.getLogger(__name__)


class Troubles:
    """Remembers by topic what failed last, so that a loop that tries twice a second does not fill the log."""

    def __init__(self) -> None:
        self._current: dict[str, str] = {}

    def __contains__(self, topic: str) -> bool:
        return topic in self._current

    def note(self, topic: str, error: TenonError) -> None:
        """``topic`` failed with ``error``; it is logged unless it failed so the last time."""
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        if self._current.get(topic) != text:
            log.error("%s: %s; it is tried again", topic, text)
        self._current[topic] = text

    def over(self, topic: str) -> None:
        """``topic`` worked."""
        if self._current.pop(topic, None) is not None:
            log.info("%s: works again", topic)
