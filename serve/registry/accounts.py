"""The registry's part that users are known by: their keys, and what they used."""

from collections.abc import Iterable, Sequence
from datetime import date

from serve.registry import keys, usage
from serve.registry.database import Database
from serve.registry.keys import ApiKey, NewKey, Rights
from serve.registry.usage import UsageDelta, UsageField, UsageSum


class Accounts:
    """Methods of :class:`~serve.registry.Registry`.

    A change of a key counts the revision up, so whoever holds keys in memory reads them again when that has moved;
    the end of a key must be looked at with each request. Usage does not count it up.
    """

    _database: Database

    def create_key(self, name: str, rights: Rights | None = None, *, tenant: str = "") -> NewKey:
        """Create a key; its secret is in the answer and nowhere else.

        Raises InputError, and Conflict where an active key has the name.
        """
        with self._database.write() as connection:
            return keys.create(connection, name, rights or Rights(), tenant)

    def keys(self, *, revoked: bool = False) -> list[ApiKey]:
        """The keys by number; those past their end are among them, those ``revoked`` if asked for."""
        with self._database.read() as connection:
            return keys.read(connection, revoked=revoked)

    def keys_used(self) -> bool:
        """Whether a key was ever created, be it revoked since."""
        with self._database.read() as connection:
            return keys.any_created(connection)

    def key(self, key: int | str) -> ApiKey:
        """The key of that number or name that is not revoked; raises KeyNotFound."""
        with self._database.read() as connection:
            return keys.find(connection, key)

    def update_key(self, key: int | str, rights: Rights) -> ApiKey:
        """Give a key other rights, in the place of all that it had; raises KeyNotFound, InputError."""
        with self._database.write() as connection:
            return keys.change(connection, key, rights)

    def revoke_key(self, key: int | str) -> ApiKey:
        """End a key for good; what it used stays counted. Raises KeyNotFound."""
        with self._database.write() as connection:
            return keys.revoke(connection, key)

    def add_usage(self, deltas: Iterable[UsageDelta]) -> None:
        """Count usage, all of it or, where this raises, nothing."""
        with self._database.write() as connection:
            usage.add(connection, deltas)

    def usage(
        self,
        since: date | None = None,
        until: date | None = None,
        by: Sequence[UsageField] = ("key_id", "adapter"),
    ) -> list[UsageSum]:
        """What was used from the day ``since`` to the day before ``until`` (of UTC), summed ``by`` some fields."""
        with self._database.read() as connection:
            return usage.read(connection, since, until, by)
