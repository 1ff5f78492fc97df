"""Samples in, verdicts out: the statistics of enginecmp, with no knowledge of how the samples were made.

Rooms, each importing only those before it: `statistics` (arrays in, estimates out) and `schema` (what leaves as JSON);
`data` (files to one value a launch); `judge` (two engines, one metric: ratio, test, verdict); `findings` (what the
samples say beyond metrics); `analyse` (all of that in order); `decisions` (quality, claims, money, machines,
regressions); `render` (tables, Markdown, CSV, JUnit, pictures). `calibrate` holds the method against known truths.

Every function returns values, intervals, sample sizes and warnings; nothing here prints.
"""
