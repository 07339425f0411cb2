"""The versions of a weighted alias as routes: which of them a conversation gets."""

from collections.abc import Mapping

from serve.gateway.balance.side import Split
from serve.gateway.routes import Route
from serve.registry import Alias


class Sides:
    """The split of one alias, and the routes of those of its versions that are ready.

    A conversation whose version is not ready is put on another side by a split of those that are: it alone
    moves, and it returns as soon as its own version is ready.
    """

    def __init__(self, alias: str, weights: Mapping[str, int], routes: Mapping[str, Route]) -> None:
        ready = {version: weight for version, weight in weights.items() if version in routes}
        self._routes = routes
        self._split = Split(alias, weights)
        self._rest = Split(alias, ready)

    def route(self, conversation: str) -> Route:
        """The route of a conversation, as :func:`~serve.gateway.balance.side.conversation_key` names it."""
        route = self._routes.get(self._split.pick(conversation))
        return route if route is not None else self._routes[self._rest.pick(conversation)]


def weights_of(alias: Alias) -> dict[str, int]:
    """The versions of an alias with their weights, in the order of their names and numbers, which stays."""
    return {
        str(version.ref): weight for version, weight in sorted(alias.targets, key=lambda pair: pair[0].ref)
    }
