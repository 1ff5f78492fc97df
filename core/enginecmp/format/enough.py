"""What a verdict takes (docs/METHODOLOGY.md): a run goes on until it is there, the analysis withholds until then."""

LAUNCHES_NEEDED = 10
"""Launches of each engine."""

REQUESTS_NEEDED = 10
"""Requests that count in each of them, where a metric has no number of its own."""
