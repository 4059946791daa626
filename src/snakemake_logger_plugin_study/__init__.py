"""A Snakemake logger for a study's terminal: a mistake in its own words, the time left, and no wrapping around either.

profiles/default names it. The log file in .snakemake/log keeps all that Snakemake says; so does `--verbose`.
"""

from __future__ import annotations

import os
import sys
from logging import LogRecord

from snakemake.logging import ColorizingTextHandler
from snakemake_interface_logger_plugins.base import LogHandlerBase

from snakemake_logger_plugin_study.hooks import HOOKS, Hooks
from snakemake_logger_plugin_study.wording import StudyFormatter

__all__ = ["HOOKS", "Hooks", "LogHandler"]


class LogHandler(LogHandlerBase):
    """What stands on the terminal."""

    def __post_init__(self) -> None:
        """Write where Snakemake's own handler would, with its colours."""
        settings = self.common_settings
        self.terminal = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=sys.stdout if settings.stdout else sys.stderr,
            formatter=StudyFormatter(
                settings.quiet, settings.show_failed_logs, is_verbose=settings.verbose, hooks=HOOKS
            ),
        )

    def emit(self, record: LogRecord) -> None:
        """Write a record; a reader that went away (head, say) ends no run."""
        try:
            self.terminal.emit(record)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.terminal.stream.fileno())

    @property
    def writes_to_stream(self) -> bool:
        """Yes: in the place of Snakemake's own."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """No: the log file is Snakemake's."""
        return False

    @property
    def has_filter(self) -> bool:
        """No: what `--quiet` leaves out is left out."""
        return False

    @property
    def has_formatter(self) -> bool:
        """Yes."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """No."""
        return False
