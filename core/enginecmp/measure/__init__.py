"""What a scenario can measure: one module a kind, each with `measure(task)`, called once per launch and cell.

A kind takes what it needs from its `Task`, keeps every sample with `task.keep`, and raises `LaunchFailure` when the
launch cannot go on. Modules are imported when a scenario uses them.
"""
