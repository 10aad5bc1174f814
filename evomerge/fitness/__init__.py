"""Worker side of scoring: a resident model's present weights -> one score per item, with lm-eval.

`tasks` says what the items are and scores them; `leaves` makes tasks ready (metric, few-shot
examples, requests); `loading` finds tasks and their data; `engine` answers requests with the
model; `surroundings` contains what lm-eval does to the process.
"""
