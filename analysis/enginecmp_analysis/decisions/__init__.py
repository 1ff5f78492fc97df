"""From a verdict to a decision: quality, claims, money, machines."""
