"""What no single packet shows, told with either driver; see ``stage``."""

from . import addresses, firewalls, isolation, lifecycle, names, ports
from .stage import STORIES, Observed, Stage, Story

__all__ = [
    "STORIES",
    "Observed",
    "Stage",
    "Story",
    "addresses",
    "firewalls",
    "isolation",
    "lifecycle",
    "names",
    "ports",
]
