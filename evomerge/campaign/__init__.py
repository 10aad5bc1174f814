"""The campaign: set-up, the loop, in-flight work, rungs, stages, initial points.

Read `loop` first: it asks, measures, records and tells. `setup` checks everything before it,
`evaluator` and `in_flight` get candidates measured, `rungs` prunes them, `recorder` judges and
writes, `choice` picks the winner; `open` puts a study, trackers and workers behind a set-up, and
`stages` runs several campaigns in a row.
"""
