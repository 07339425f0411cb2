"""What a rollback of each alias returns to; nothing may remove that, and engines keep it loaded."""

from sqlalchemy import Connection, select

from serve.names import VersionRef, parse_version
from serve.registry.schema import alias_changes, alias_targets, aliases, targets_hold, versions


def ways_back(connection: Connection) -> dict[str, VersionRef]:
    """What a rollback of each alias returns to: what it meant before; if it is split, what last had it alone.

    A version that does not exist any more is passed over. Aliases without a way back are left out.
    """
    before = connection.execute(
        select(aliases.c.name, versions.c.name, versions.c.number).join(
            versions, aliases.c.previous_id == versions.c.id
        )
    )
    found = {name: VersionRef(*ref) for name, *ref in before}
    split = connection.scalars(select(aliases.c.name).join(alias_targets, targets_hold).distinct()).all()
    for name in split:
        found.pop(name, None)
        alone = _last_alone(connection, name)
        if alone is not None:
            found[name] = alone
    return found


def _last_alone(connection: Connection, name: str) -> VersionRef | None:
    """Of the changes since the alias was last removed, if it was: an older alias of that name is another."""
    changes = select(alias_changes.c.target, alias_changes.c.targets).where(alias_changes.c.alias == name)
    for text, targets in connection.execute(changes.order_by(alias_changes.c.id.desc())).all():
        if targets is not None:
            if not any(weight for _, weight in targets):
                return None
            continue
        ref = parse_version(text)
        same = (versions.c.name == ref.name) & (versions.c.number == ref.number)
        if connection.execute(select(versions.c.id).where(same)).first() is not None:
            return ref
    return None
