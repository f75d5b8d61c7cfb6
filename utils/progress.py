"""Moved to utils.scripts."""

from utils.scripts import progress_bar as progress_bar
from utils.scripts import tracked as tracked
