"""What an anchor takes in memory and in files, before any time is spent, and how to keep it within a budget."""

from holdfast.plan.choosing import from_config, make
from holdfast.plan.plan import Plan
from holdfast.plan.table import Choice, choices, table

__all__ = ["Choice", "Plan", "choices", "from_config", "make", "table"]
