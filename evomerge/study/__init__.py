"""The durable record: an Optuna study in which every evaluation is a fact, written once, whole.

`record` holds what is recorded and needs numpy alone; `study` reads and writes it.
"""
