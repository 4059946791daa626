"""How Snakemake's records read on a study's terminal."""

from __future__ import annotations

import re
from collections.abc import Collection
from logging import LogRecord
from typing import Any

from snakemake.logging import DefaultFormatter, get_event, show_logs
from snakemake_interface_logger_plugins.common import LogEvent

from snakemake_logger_plugin_study.hooks import Hooks
from snakemake_logger_plugin_study.unwrapping import before_the_workflow, missing_target, unwrapped

# Said of every failed run, beside what failed.
_REPEATED = (
    "Exiting because a job execution failed.",
    "At least one job did not complete successfully.",
    "Shutting down, this might take some time.",
)
_RULE_OF_MANY = "Target rules may not contain wildcards."
_NOTHING_TO_DO = "Nothing to be done"
_ENDED = re.compile(r"Command .*(?:died with (?:<Signals\.)?(?P<signal>\w+)|exit status (?P<status>\d+))", re.DOTALL)
# A shell says 128 + 9 of a child that was killed with signal 9.
_KILLED_IN_SHELL = {"137": "SIGKILL", "143": "SIGTERM"}
# A script that ends so has said why: a mistake, or Ctrl-C.
_SAID = ("1", "130")


class StudyFormatter(DefaultFormatter):
    """Snakemake's formatter without the wrapping of errors, and with the time left.

    Args:
        quiet: What is not to be told.
        show_failed_logs: Whether the log of a failed job is shown.
        is_verbose: Whether everything is to be told as Snakemake has it.
        hooks: What the workflow adds.
    """

    def __init__(
        self, quiet: Collection[Any] | None, show_failed_logs: bool, *, is_verbose: bool, hooks: Hooks
    ) -> None:
        super().__init__(quiet, show_failed_logs)
        self._is_verbose = is_verbose
        self._hooks = hooks
        self._started: float | None = None
        self._ended: str | None = None

    def format(self, record: LogRecord) -> str:
        """A record as the terminal shows it; nothing of those that say nothing new."""
        event = get_event(record)
        if event == LogEvent.JOB_INFO and self._started is None:
            self._started = record.created
        text = self._plain(record, event)
        if event == LogEvent.PROGRESS:
            return text + self._time_left(record)
        if event is None and record.getMessage().startswith(_NOTHING_TO_DO) and self._hooks.results is not None:
            return f"{text}\n{self._hooks.results()}".rstrip()
        return text

    def _plain(self, record: LogRecord, event: LogEvent | None) -> str:
        if self._is_verbose:
            return super().format(record)
        message = record.getMessage()
        if event == LogEvent.WORKFLOW_STARTED or any(said in message for said in _REPEATED):
            return ""
        if event == LogEvent.JOB_ERROR:
            return self._job_failed(record.__dict__)
        if event == LogEvent.ERROR:
            return self._error(message)
        return super().format(record)

    def _error(self, message: str) -> str:
        name = missing_target(message)
        if name is not None and self._hooks.unknown_target is not None:
            return self._hooks.unknown_target(name)
        if _RULE_OF_MANY in message and self._hooks.rule_of_many is not None:
            return self._hooks.rule_of_many() or unwrapped(message)
        ended = _ENDED.search(message)
        if ended is not None and "CalledProcessError" in message:
            signal = ended["signal"] or _KILLED_IN_SHELL.get(ended["status"])
            status = None if ended["status"] in _SAID else f"It ended with exit status {ended['status']}."
            # Its rule and log are told with the record that follows.
            self._ended = f"It died with {signal}." if signal else status
            return ""
        return before_the_workflow(message) or unwrapped(message)

    def _job_failed(self, job: dict[str, Any]) -> str:
        made = ", ".join(job["output"])
        lines = [f"Failed: {job['rule_name']}" + (f", which makes {made}" if made else "")]
        ended, self._ended = self._ended, None
        lines += [f"  {line}" for line in (ended, job["rule_msg"]) if line]
        if job["log"]:
            lines.append(f"  log: {', '.join(job['log'])}")
        lines += [f"  {key}: {detail}" for key, detail in job["aux"].items()]
        if self.show_failed_logs and job["log"]:
            lines += show_logs(job["log"])
        return "\n".join(lines)

    def _time_left(self, record: LogRecord) -> str:
        done, left = record.__dict__["done"], record.__dict__["total"] - record.__dict__["done"]
        if not left or not done or self._started is None:
            return ""
        minutes = (record.created - self._started) * left / done / 60
        return f", at this pace {'less than a minute' if minutes < 1 else f'about {minutes:.0f} min'} left"
