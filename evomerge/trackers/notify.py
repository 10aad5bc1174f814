"""Messages to a webhook or a command when a campaign is done, has failed, or has a new best."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from typing import Any

import tenacity
from typing_extensions import override

from evomerge.config import NotifyConfig
from evomerge.study.record import Evaluation
from evomerge.trackers.base import Outcome, Run, Tracker

SECONDS = 30
"""Time-out of a webhook's answer, or of a command."""
ATTEMPTS = 3


class Notify(Tracker):
    """Sends the messages of one entry of `notify`; what cannot be delivered is said, not raised."""

    _run: Run

    def __init__(self, config: NotifyConfig) -> None:
        """Send to the webhook or command of `config`, on the occasions it names."""
        self._config = config

    @override
    def begin(self, run: Run) -> int:
        self._run, self._changed = run, not run.done
        return run.trials  # of what is on record already, nothing is told

    @override
    def record(self, evaluation: Evaluation, best: Evaluation | None) -> None:
        self._changed = True
        if evaluation is best and "best" in self._config.when:
            self._send(
                "best",
                f"best so far {evaluation.value:.4f}, trial {evaluation.number}",
                trial=evaluation.number,
                digest=evaluation.digest,
                value=evaluation.value,
            )

    @override
    def end(self, outcome: Outcome) -> None:
        stage = self._run.stage
        last = stage is None or stage["place"] == stage["of"]
        if outcome.kind == "failed" and "failure" in self._config.when:
            self._send("failure", f"failed: {outcome.reason}", reason=outcome.reason)
        elif outcome.summary and last and self._changed and "finish" in self._config.when:
            found = outcome.summary
            test = found["scores"]["test"]["mean"]
            text = f"done: trial {found['trial']} reaches {test:.4f} on test. {outcome.verdict}"
            facts = {key: found[key] for key in ("trial", "digest", "scores", "verdict")}
            self._send("finish", text, **facts)

    def _send(self, event: str, text: str, **facts: Any) -> None:
        run = self._run
        said = f"{run.name}: {text}"
        folder = str(run.folder.resolve())
        message = {"event": event, "text": said, "name": run.name, "folder": folder, **facts}
        try:
            if self._config.webhook is not None:
                _post(self._config.webhook, message)
            else:
                _call(self._config.command or [], message)
        except (OSError, subprocess.SubprocessError) as error:
            # What requests says (it raises OSErrors) names the address, which may be a secret.
            what = type(error).__name__ if self._config.webhook else str(error)
            run.say(f"notify: {event!r} could not be delivered ({what}); the campaign goes on")


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(OSError),
    stop=tenacity.stop_after_attempt(ATTEMPTS),
    wait=tenacity.wait_exponential(max=10),
    reraise=True,
)
def _post(address: str, message: dict[str, Any]) -> None:
    import requests

    requests.post(address, json=message, timeout=SECONDS).raise_for_status()


def _call(command: str | list[str], message: dict[str, Any]) -> None:
    """Run the command, in no shell: the message is its input, the main facts its environment."""
    told = {f"EVOMERGE_{key.upper()}": str(message[key]) for key in ("event", "text", "folder")}
    subprocess.run(
        shlex.split(command) if isinstance(command, str) else command,
        input=json.dumps(message),
        env={**os.environ, **told},
        text=True,
        capture_output=True,
        timeout=SECONDS,
        check=True,
    )
