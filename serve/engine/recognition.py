"""Does the engine answer for an adapter as that adapter, and not as another one that it holds or held?

The effect probe shows that an engine applies some weights under a name. Two further comparisons of what it heard
show whose they are:

- **With the others** that were proven in this life of the engine. Who answers to the last digit as another adapter
  with other files is looked at again: the same weights may have been saved twice, in another dtype, with a padded
  rank or other alpha, and two neighbouring checkpoints may be too close to each other for an engine to tell. So the
  files say what to expect: :func:`~serve.registry.sketch.apart` is how far their changes of a layer lie from each
  other, as a share. Only where that share is more than :data:`ALIKE`, and that share of the adapter's effect on the
  base more than computing otherwise can make of it (:attr:`~serve.engine.probe.Answers.rounding`), the answers
  should differ and the adapter is refused. Otherwise, and where files are gone, the controller's log warns.
- **With itself**, as it answered when it was first proven on this machine under the same conditions, also in earlier
  lives (:mod:`serve.engine.reference`). Numbers move a little from life to life, so it is refused only when it is
  further from itself than :data:`SHARE` of its effect on the base, and further than :data:`FAR` times what computing
  otherwise was ever seen to make of it, and more than the base has moved, too. Where the base itself answers clearly
  otherwise than then, the engine computes otherwise: nothing is compared, and today's answers are kept from now on.

What it cannot see: of two adapters that the engine has taken for each other, which is the wrong one, so the one
that was loaded later is refused; and a wrong adapter in its very first load here, while the right owner of these
answers was not proven in this life. In bfloat16 under load the same adapter's answers may differ by more than
the base differed from itself in this minute; then the first comparison sees nothing, and the second still does.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from serve.engine.probe import NOISE_FACTOR, Answers, EffectProbe
from serve.engine.reference import Reference, References
from serve.errors import MistakenAdapter
from serve.registry.records import Version

log = logging.getLogger(__name__)

ALIKE = 0.05
"""The share by which the changes of two adapters may differ that count as one saved twice: bfloat16 makes 0.004."""

SHARE = 0.5
FAR = 3.0
"""How far an adapter must be from itself to be refused: as a share of its effect, and in ``rounding``."""

AGAIN = "it is loaded again by itself; if it stays so, restart the engine"


@dataclass(frozen=True)
class Proven:
    """An adapter that answered as itself in this life of the engine."""

    engine_name: str
    path: Path
    answers: Answers


class Recognition:
    """What one life of an engine has shown of whose answers it gives, and the ``references`` of earlier ones."""

    def __init__(self, references: References | None = None) -> None:
        self._references = references or References(None)
        self._proven: dict[str, Proven] = {}

    def reborn(self) -> "Recognition":
        """That of the next life."""
        return Recognition(self._references)

    def check(self, version: Version, probe: EffectProbe) -> None:
        """Raise :class:`MistakenAdapter` for an adapter that is not itself; remember what it answers otherwise.

        It may read the adapters' files, so it is none for an event loop.
        """
        for digest, other in self._proven.items():
            if digest != version.digest:
                _differs(version, probe, other)
        self._is_as_it_was(version, probe)
        self._proven[version.digest] = Proven(version.engine_name, version.path, probe.adapter)

    def _is_as_it_was(self, version: Version, probe: EffectProbe) -> None:
        key = version.base_digest, version.digest
        reference = self._references.read(*key, probe.adapter.route)
        if reference is not None:
            moved = reference.base.distance(probe.base)
            if moved <= probe.base.rounding:
                self._compare(version, probe, reference, moved)
                return
            log.info(
                "the base answers otherwise than when %s was first proven (by %.2g): not compared",
                version.engine_name,
                moved,
            )
        self._references.keep(*key, version.engine_name, Reference(probe.base, probe.adapter))

    def _compare(self, version: Version, probe: EffectProbe, reference: Reference, moved: float) -> None:
        shift = reference.adapter.distance(probe.adapter)
        effect = reference.base.distance(reference.adapter)
        far = max(FAR * probe.adapter.rounding, NOISE_FACTOR * max(probe.noise, moved))
        if shift > max(far, SHARE * effect):
            path = self._references.path(version.base_digest, version.digest, probe.adapter.route)
            raise MistakenAdapter(
                f"the engine does not answer for {version.engine_name} as it did when that was first proven "
                f"(largest difference in {probe.what} {shift:.2g}; that to the base was {effect:.2g})",
                f"{AGAIN}; if it was wrong then and is right now, remove {path}",
            )


def _differs(version: Version, probe: EffectProbe, other: Proven) -> None:
    """Raise for an adapter that answers as another does although their files say otherwise."""
    if other.answers.route != probe.adapter.route:
        return
    distance = other.answers.distance(probe.adapter)
    if distance > probe.same:
        return
    share = _apart(version.path, other.path)
    if share is None or share <= ALIKE or share * probe.max_difference <= probe.adapter.rounding:
        log.warning(
            "%s answers as %s does; by their files they %s",
            version.engine_name,
            other.engine_name,
            "cannot be compared"
            if share is None
            else f"differ by {share:.1%}, too little to tell them apart",
        )
        return
    raise MistakenAdapter(
        f"the engine answers for {version.engine_name} as {other.engine_name} does "
        f"(largest difference in {probe.what} {distance:.2g}, by their files they differ by {share:.0%})",
        AGAIN,
    )


def _apart(one: Path, other: Path) -> float | None:
    """How far two adapters' weights are apart; None where files are gone."""
    # Imported here, as numpy takes a while and is hardly ever needed.
    from serve.registry.sketch import apart, sketch

    try:
        return apart(sketch(one), sketch(other))
    except (OSError, ValueError, LookupError):
        return None
