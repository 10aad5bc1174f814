"""`evomerge`, and `python -m evomerge`."""

import sys

from evomerge.common.version import __version__


def main() -> None:
    """Run the command that `sys.argv` names; the version alone is printed without loading them."""
    if sys.argv[1:] == ["--version"]:
        print(__version__)
        return
    from evomerge.common.one_thread import let_waiting_threads_sleep

    let_waiting_threads_sleep()
    from evomerge.cli import main as commands

    commands()


if __name__ == "__main__":
    main()
