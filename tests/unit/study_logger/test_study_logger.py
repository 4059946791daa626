"""What a study's terminal shows of Snakemake's records: mistakes in their own words, and the time left."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.exceptions import InputFunctionException, MissingRuleException, RuleException, format_exception_to_string
from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_logger_plugins.common import LogEvent

from outlier_moe.errors import StudyError
from snakemake_logger_plugin_study import HOOKS, Hooks, LogHandler
from snakemake_logger_plugin_study.wording import StudyFormatter

MISTAKE = StudyError(
    "A key is not known.",
    file="config.yaml",
    key="magnitud",
    expected="a key",
    got="magnitud",
    remedy="Did you mean 'magnitude'?",
)
INSIDE = ("common.smk", "WorkflowError", "RuleException", "CalledProcessError", "Traceback", "line 7", "Exiting")


def record(message: str | None, level: int = logging.ERROR, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("snakemake.logging", level, __file__, 1, message, None, None)
    made.__dict__.update(extra)
    return made


def error(exception: Exception) -> logging.LogRecord:
    """The record that Snakemake makes of an exception, whose origin it names as a line of a Snakefile."""
    wrapped = format_exception_to_string(exception, {})
    return record(wrapped, event=LogEvent.ERROR, exception=type(exception).__name__)


def job_error(**keys: Any) -> logging.LogRecord:
    job = {
        "rule_name": "tokenize_corpus",
        "rule_msg": None,
        "jobid": 3,
        "output": ["results/smollm2/tokens.arrow"],
        "log": ["logs/tokenize_corpus/smollm2.log"],
        "aux": {},
        "indent": False,
    }
    return record("Error in rule tokenize_corpus, jobid: 3", event=LogEvent.JOB_ERROR, **(job | keys))


def shown(*records: logging.LogRecord, is_verbose: bool = False, hooks: Hooks | None = None) -> str:
    formatter = StudyFormatter(None, False, is_verbose=is_verbose, hooks=hooks or Hooks())
    return "\n".join(filter(None, map(formatter.format, records)))


def wrapped_in_an_input_function() -> Exception:
    rule: Any = SimpleNamespace(
        name="record_outliers", lineno=7, snakefile="record.smk", workflow=SimpleNamespace(linemaps={})
    )
    inner = WorkflowError(str(MISTAKE))
    inner.rule, inner.snakefile, inner.lineno = None, "workflow/rules/common.smk", 7
    return InputFunctionException(
        inner, wildcards={"model": "mixtral"}, lineno=7, snakefile="workflow/rules/record.smk", rule=rule
    )


@pytest.mark.parametrize(
    "exception",
    [
        WorkflowError(str(MISTAKE)),
        WorkflowError(str(MISTAKE), snakefile="workflow/rules/common.smk", lineno=7),
        wrapped_in_an_input_function(),
    ],
    ids=["plain", "with its place", "in an input function"],
)
def test_a_mistake_is_told_in_its_own_words_and_no_others(exception: Exception) -> None:
    assert shown(error(exception)) == str(MISTAKE)


def test_verbose_tells_the_place_too() -> None:
    assert "common.smk" in shown(error(WorkflowError(str(MISTAKE), snakefile="common.smk", lineno=7)), is_verbose=True)


def test_a_bug_of_the_workflow_keeps_its_place() -> None:
    bug = 'KeyError in file "workflow/rules/common.smk", line 7:\n\'x\'\n  File "common.smk", line 7, in <module>'
    assert shown(record(bug, event=LogEvent.ERROR, exception="KeyError")) == bug


def failed_command(how: str) -> logging.LogRecord:
    text = f"CalledProcessError in file \"tokenize.smk\", line 7:\nCommand 'set -euo; python\nx.py' {how}."
    return error(RuleException(text))


def test_a_failed_job_is_named_with_its_log_alone() -> None:
    said = shown(
        failed_command("returned non-zero exit status 1"),
        job_error(),
        record("Shutting down, this might take some time.", logging.INFO),
        record("Exiting because a job execution failed. Look above for error messages"),
        error(WorkflowError("At least one job did not complete successfully.")),
    )
    assert not any(word in said for word in INSIDE)
    assert said.splitlines() == [
        "Failed: tokenize_corpus, which makes results/smollm2/tokens.arrow",
        "  log: logs/tokenize_corpus/smollm2.log",
    ]


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("died with <Signals.SIGKILL: 9>", "SIGKILL"),
        ("returned non-zero exit status 137", "SIGKILL"),
        ("died with <Signals.SIGSEGV: 11>", "SIGSEGV"),
        ("returned non-zero exit status 3", "exit status 3"),
    ],
)
def test_a_job_that_ended_without_a_word_says_how(how: str, says: str) -> None:
    said = shown(failed_command(how), job_error())
    assert says in said and not any(word in said for word in INSIDE)
    assert says not in shown(failed_command(how), job_error(), job_error()).splitlines()[-1], "told of one job"


def test_what_an_executor_adds_is_kept() -> None:
    said = shown(job_error(rule_msg="The node was lost.", aux={"external_jobid": "node-1"}))
    assert "The node was lost." in said and "node-1" in said


def test_an_unknown_target_is_explained_by_the_workflow() -> None:
    missing = error(MissingRuleException("results/mixtrall/systematic.parquet"))
    hooks = Hooks(unknown_target=lambda target: f"<{target}>", rule_of_many=lambda: "many")
    assert shown(missing, hooks=hooks) == "<results/mixtrall/systematic.parquet>"
    assert "results/mixtrall/systematic.parquet" in shown(missing)
    many = error(WorkflowError("Target rules may not contain wildcards. Please specify concrete files"))
    assert shown(many, hooks=hooks) == "many"


def test_mistakes_before_the_snakefile_are_no_tracebacks() -> None:
    from snakemake.cli import parse_config
    from snakemake.common.configfile import load_configfile

    calls = [lambda: parse_config(["a"]), lambda: parse_config(["a={b"]), lambda: load_configfile("nope.yaml")]
    for call in calls:
        with pytest.raises((ValueError, OSError, WorkflowError)) as raised:
            call()
        said = shown(error(raised.value))
        assert not any(word in said for word in INSIDE) and "expected: " in said and "--config" in said


@pytest.mark.parametrize("name", ["config/config.yaml", "own.yaml"])
def test_a_configuration_that_is_no_yaml_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from snakemake.common.configfile import load_configfile

    (tmp_path / "config").mkdir()
    (tmp_path / "config/config.yaml").write_text("magnitude: 6.0\n")
    (tmp_path / name).write_text("magnitude: 6.0\n  models: [a\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["snakemake", "--configfile", "own.yaml", "-n"])
    with pytest.raises(WorkflowError) as raised:
        load_configfile(name)
    said = shown(error(raised.value))
    assert f"file: {name}" in said and "line 2" in said and "remedy: " in said


def test_progress_has_the_time_left() -> None:
    info = {"rule_msg": "Fetching", "jobid": 1, "reason": "new", "event": LogEvent.JOB_INFO}
    start = record("", logging.INFO, **info, created=1000.0)
    some = record(None, logging.INFO, event=LogEvent.PROGRESS, done=4, total=12, created=1600.0)
    last = record(None, logging.INFO, event=LogEvent.PROGRESS, done=12, total=12, created=2000.0)
    lines = shown(start, some, last).splitlines()
    assert "4 of 12" in lines[-2] and "20 min" in lines[-2]
    assert lines[-1].endswith("done")


def test_a_run_with_nothing_to_do_names_the_results() -> None:
    nothing = record("Nothing to be done (all requested files are present and up to date).", logging.INFO)
    assert shown(nothing, hooks=Hooks(results=lambda: "Results: x")).splitlines()[-1] == "Results: x"


def test_the_handler_writes_where_snakemake_would(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    settings: Any = SimpleNamespace(nocolor=True, stdout=False, quiet=None, show_failed_logs=False, verbose=False)
    handler = LogHandler(settings, None)
    handler.handle(error(WorkflowError(str(MISTAKE))))
    assert stream.getvalue() == f"{MISTAKE}\n"
    assert handler.writes_to_stream and not handler.writes_to_file
    assert HOOKS.unknown_target is None, "only a Snakefile sets it"
