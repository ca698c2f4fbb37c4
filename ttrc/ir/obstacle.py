"""What keeps a rule from a chunk form."""

from __future__ import annotations

from enum import Enum


class Obstacle(Enum):
    """The first thing found; tools/reasons.py says it to readers."""

    MIRROR = "the state moves by no linear law"
    LINK = "weights are a link of every token's state"
    NETWORK = "every token's gradient goes through the whole network"
    SEGMENT = "the segment is no size of a chunk"
    JOINED = "channels that join in a sum, of more tokens than registers hold"
    NOT_AFFINE = "tokens are no affine maps of the state"
    MAPS_OF_TWO = "tokens are maps of two numbers a channel"
    MOMENTUM_BY_KEY = "a momentum beside a decay by key channel"
    DECAY_BY_VALUE = "the decay differs by value channel"
    DECAY_BY_ENTRY = "the decay differs by entry"
    WRITE_BY_ENTRY = "the weight of what is written differs by entry"
    DECAY_MAY_BE_ZERO = "the decay has no logarithm"
    MOMENTUM_MAY_BE_ZERO = "the momentum has no logarithm"


class Uncut(Enum):
    """What keeps a sequence from being cut into pieces that run side by side."""

    NOT_AFFINE = "a state is no affine function of the one before it"
    BY_VALUES = "how a state crosses a chunk hangs on values"
