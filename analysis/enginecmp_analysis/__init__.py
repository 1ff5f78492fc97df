"""Samples in, verdicts out: the statistics of enginecmp, with no knowledge of how the samples were made.

The way through: `load` reads run folders into `columns`, `fingerprint` says which of them may be pooled,
`metrics` turns stamps into seconds and rates, `launches` takes their means per launch, `compare` sets two engines
against each other block by block, `multiplicity` corrects for looking often, `verdict` puts it into one word, and
`report` does all of that in order. `output` writes the result down, `pictures` draws it.

Every function returns values, intervals, sample sizes and warnings; nothing here prints.
"""
