"""What no single packet shows, told with either driver; see ``stage``."""

from . import addresses, lifecycle, names, ports
from .stage import STORIES, Observed, Stage, Story

__all__ = ["STORIES", "Observed", "Stage", "Story", "addresses", "lifecycle", "names", "ports"]
