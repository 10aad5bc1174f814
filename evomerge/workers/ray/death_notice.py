"""Say why the driver is gone, where Ray ended it: a script, which outlives the driver.

Ray's raylet ends when one of its agents does, and a driver that loses its raylet or Ray's server
(GCS) is ended by Ray's own threads, at once and without a word. This process waits for the end of
its standard input, which the driver holds; where the driver did not write to it before, and a
process of Ray's is gone, it says so on standard error.
"""

from __future__ import annotations

import sys

import psutil

MESSAGE = (
    "error: Ray on this machine has ended, and with it this search: its {name} is gone. That "
    "happens when one of its agents dies, when memory or process numbers run out, or by `ray "
    "stop`; its logs: {logs}. Nothing recorded is lost: run the same command again; if it happens "
    "again, with `workers: {{kind: local, count: 1}}`, which needs no Ray."
)


def main(logs: str, *processes: str) -> None:
    """Wait for the driver's end, and say what ended before it.

    Args:
        logs: the folder of Ray's logs.
        processes: `NAME=PID`.
    """
    if sys.stdin.buffer.read(1):
        return
    for name, pid in (one.split("=") for one in processes):
        if _is_gone(int(pid)):
            print(MESSAGE.format(name=name, logs=logs), file=sys.stderr, flush=True)
            return


def _is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


if __name__ == "__main__":
    main(*sys.argv[1:])
