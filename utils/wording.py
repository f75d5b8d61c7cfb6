"""Moved to utils.intervals."""

from utils.intervals import METHOD_NAMES as METHOD_NAMES
from utils.intervals import SALIENCY_NAMES as SALIENCY_NAMES
from utils.intervals import about_minutes as about_minutes
from utils.intervals import interval_text as interval_text
from utils.intervals import metric_name as metric_name
from utils.intervals import savings_sentence as savings_sentence
