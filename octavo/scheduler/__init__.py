"""What runs next: sequences, rows, budgets. No tensor is touched here."""

from octavo.scheduler.config import SchedulerConfig
from octavo.scheduler.scheduler import Scheduler

__all__ = ["Scheduler", "SchedulerConfig"]
