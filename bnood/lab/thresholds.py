"""What counts as an effect in the lab's checks, stated before the lab is run."""

import math
from dataclasses import dataclass

from bnood.errors import UserError


@dataclass(frozen=True)
class CheckOptions:
    """What counts as an effect; a lab's config gives these under ``checks:``, before it is run.

    Args:
        starved: (a) the gradient counts as starved if the first layer's is below the last layer's by more than so
            many powers of ten. One: at a learning rate that suits the last layer, the first then takes ten times as
            long.
        raised: (b) least rise of log10(first / last), in powers of ten. 0.3 is a factor of two.
        gained: (b) least gain in accuracy: five points, which nobody would call a small difference.
        small: (c) differences in accuracy within +- this are small: three points, as the notes' "little difference".
        centred: (d) least fall of log10 of the units' distance from zero: 0.3, to a half. On a logarithmic scale,
            because an untrained net can lie thousands of standard deviations off.
        lost: (e) least share of units that are dead without norm beyond those with it: one in twenty.
        between: (f) how far GN may lie outside LN and BN and still count as between them, in accuracy: one point.
        between_ratio: (f) the same of log10(first / last): 0.3, a factor of two.
        level: of confidence of the intervals.
    """

    starved: float = 1.0
    raised: float = 0.3
    gained: float = 0.05
    small: float = 0.03
    centred: float = 0.3
    lost: float = 0.05
    between: float = 0.01
    between_ratio: float = 0.3
    level: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.level < 1:
            raise UserError(f"checks.level is {self.level}; it has to lie between 0 and 1 (0.95, say)")
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise UserError(f"checks.{name} is {value}; it has to be a finite number of at least 0")
