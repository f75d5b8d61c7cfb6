"""Moved to utils.files."""

from utils.files import exclusive_lock as exclusive_lock
from utils.files import try_lock as try_lock
