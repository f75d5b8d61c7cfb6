"""Moved to utils.optimisation."""

from utils.optimisation import endless_order as endless_order
from utils.optimisation import epoch_order as epoch_order
from utils.optimisation import fixed_order as fixed_order
from utils.optimisation import mixed_seed as mixed_seed
