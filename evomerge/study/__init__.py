"""The study: an Optuna study in which every evaluation is a fact, written once, whole.

`record` holds the data recorded and needs numpy alone; `study` reads and writes them; `judged`
judges them. Import `Study` from `study.study`: it brings Optuna.
"""

from evomerge.study.record import Evaluation, Marker, RungProgress, RungResult

__all__ = ["Evaluation", "Marker", "RungProgress", "RungResult"]
