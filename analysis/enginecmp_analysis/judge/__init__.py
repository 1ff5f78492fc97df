"""From launch means to verdicts: pairs, tests, corrections, plans, races, regressions, history."""
