"""The kinds of opaque parts there are, by the mark of their bytes."""

from __future__ import annotations

from fedpers.channels.masked.envelope import Envelope
from fedpers.channels.opaque import Opaque
from fedpers.channels.sealed.sealed_parts import SealedParts

KINDS: dict[str, type[Opaque]] = {kind.stype: kind for kind in (SealedParts, Envelope)}
