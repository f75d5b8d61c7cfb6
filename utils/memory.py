"""Moved to utils.hardware."""

from utils.hardware import keep_freed_memory as keep_freed_memory
from utils.hardware import usable_cores as usable_cores
