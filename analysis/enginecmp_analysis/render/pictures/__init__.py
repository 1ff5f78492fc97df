"""Pictures of an analysis, and the page that holds them: what `cmp report` writes."""
