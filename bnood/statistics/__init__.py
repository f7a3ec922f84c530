"""BatchNorm statistics: values, estimation and use; see :mod:`bnood.statistics.use`."""

from bnood.statistics.use import *  # noqa: F403
