"""A model's weights become one score per item, with lm-eval or a function of the user's own.

`tasks` finds tasks and reads values off answers; `inference` answers requests with a model in this
process; `engines` says who answers. The names below need no torch; `TaskSet` and `list_items` are
imported from `tasks.task_set`, since lm-eval takes seconds to import.
"""

from evomerge.fitness.engines import (
    Engine,
    EngineContext,
    RequestAnswerer,
    Response,
    build_engine,
    check_engine,
    engine,
)

__all__ = [
    "Engine",
    "EngineContext",
    "RequestAnswerer",
    "Response",
    "build_engine",
    "check_engine",
    "engine",
]
