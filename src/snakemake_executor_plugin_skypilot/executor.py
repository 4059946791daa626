"""The executor: it checks, makes each job a thread of its own, and tells Snakemake how they ended."""

from __future__ import annotations

import atexit
import platform
import signal
import threading
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path
from types import FrameType
from typing import Any

from snakemake_interface_common.exceptions import WorkflowError
from snakemake_interface_executor_plugins.executors.base import SubmittedJobInfo
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

from snakemake_executor_plugin_skypilot import planning, preflight, scripts
from snakemake_executor_plugin_skypilot.arriving import remove
from snakemake_executor_plugin_skypilot.cloud import Cloud, NodeTask, import_sky
from snakemake_executor_plugin_skypilot.errors import first_line
from snakemake_executor_plugin_skypilot.job_files import Job, inputs_of, job_files, jobs_of, minutes_of, name_of
from snakemake_executor_plugin_skypilot.masked_log import MaskedLog, Secrets
from snakemake_executor_plugin_skypilot.names import STATE, log_path, project_name, run_of
from snakemake_executor_plugin_skypilot.nodes_wanted import WantedNode, refuse_undecided, strictest, wanted_node
from snakemake_executor_plugin_skypilot.opening import open_run
from snakemake_executor_plugin_skypilot.prices import Prices
from snakemake_executor_plugin_skypilot.remote_job import Expected, RemoteJob, Run
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings
from snakemake_executor_plugin_skypilot.staging import KeptBack, fill, inside

# Jobs report by themselves: looking at them costs nothing.
SECONDS_BETWEEN_LOOKS = 1
# So long the threads of cancelled jobs are waited for.
PATIENCE_S = 60
ENDED_BY = (signal.SIGTERM, signal.SIGHUP)


class Executor(RemoteExecutor):
    """Runs each job on a node that SkyPilot rents."""

    def __post_init__(self) -> None:
        """Check all that can be, before anything is rented."""
        settings = self.executor_settings
        assert isinstance(settings, ExecutorSettings)
        self._settings = settings
        # Empty on the command line where a profile has them.
        self._requirements = settings.requirements or None
        # The interfaces do not name all that is behind them.
        self._dag: Any = self.dag
        self._logger: Any = self.logger
        self._root = Path.cwd()
        self._state = Path(self.workflow.persistence.path) / STATE
        self._state.mkdir(parents=True, exist_ok=True)
        self._jobs: list[RemoteJob] = []
        self._is_over = False
        self._is_cancelled = False
        self._is_too_dear = False
        self.next_seconds_between_status_checks = SECONDS_BETWEEN_LOOKS
        preflight.load_environment(self._root / settings.env_file)
        self._kept_back = KeptBack(self._root, (self._root / settings.env_file,) if settings.env_file else ())
        planning.check_settings(settings)
        if self.workflow.main_snakefile is not None:
            inside(self.workflow.main_snakefile, self._root)
        self._run: Run | None = None
        jobs = [job for job in self._dag.needrun_jobs() if not job.is_local]
        if jobs:
            self._prepare(jobs)

    @property
    def cores(self) -> str:
        """A node has one job at a time, which gets all of it."""
        return "all"

    def run_job(self, job: Job) -> None:
        """Start a job's thread; a job that cannot be started fails, and ends no other."""
        try:
            info = self._started(job)
        except (WorkflowError, OSError) as error:
            # Raised here, it would end the whole run, whatever --keep-going says.
            info = SubmittedJobInfo(job, aux={"problem": str(error)})
        self.report_job_submission(info)

    def _started(self, job: Job) -> SubmittedJobInfo:
        if self._run is None:
            self._prepare([job])
        assert self._run is not None
        self._end_on_signals()
        name = name_of(job)
        # Formatting a job looks into the DAG, which is this thread's.
        command = self.format_job_exec(job)
        files = job_files(job, self._root)
        wanted = self._wanted(job)
        prices = preflight.prices_per_hour(name, wanted, self._prices)
        folder = Path(self.tmpdir) / f"node-files-{job.jobid}"
        task = NodeTask(
            name=name,
            folder=folder,
            setup=self._setup_script,
            run=scripts.run_script(command, files.outputs, self._environment, self._settings.prelude),
            secrets=self._secrets,
            wanted=wanted,
        )
        log = log_path(self._state, job.name, name, f"{self._lock.name}.{job.jobid}.{job.attempt}")
        thread = RemoteJob(
            task,
            partial(self._fill, folder, inputs_of(job), files.resume),
            files,
            MaskedLog(log, self._hidden_values),
            expected=Expected(minutes_of(job), prices),
            shared=self._run,
        )
        self._jobs.append(thread)
        # Before it is looked at: a thread that has not started would be taken for one that is through.
        thread.start()
        return SubmittedJobInfo(job, external_jobid=name, aux={"thread": thread, "log": log, "folder": folder})

    async def check_active_jobs(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, active_jobs: list[SubmittedJobInfo]
    ) -> AsyncGenerator[SubmittedJobInfo, None]:
        """Report the jobs whose threads are through; the others are looked at again."""
        self._heed_cap()
        for info in active_jobs:
            assert info.aux is not None
            thread: RemoteJob | None = info.aux.get("thread")
            if self._is_cancelled or (thread is not None and thread.is_alive()):
                yield info
            elif thread is None:
                self._report_problem(info, f"{info.aux['problem']}\n")
            else:
                # Before Snakemake is told: what it removes then would go on taking room there.
                with suppress(OSError):
                    remove(info.aux["folder"])
                if thread.problem is None:
                    self.report_job_success(info)
                else:
                    last = "".join(f"    {line}\n" for line in thread.last_lines)
                    end = f"The end of its output:\n{last}" if last else ""
                    self._report_problem(info, f"{thread.problem}\n{end}", aux_logs=[str(info.aux["log"])])

    def _heed_cap(self) -> None:
        """End all nodes when the run has come to what it may cost: a job may hang, and a forecast may be wrong."""
        cap, run = self._settings.max_price_total, self._run
        if cap is None or run is None or self._is_too_dear or run.ledger.dollars <= cap:
            return
        self._is_too_dear = True
        self._logger.error(
            f"The run has come to ${cap:g} (max-price-total): its nodes are ended. What is finished stays: raise it "
            "and run again."
        )
        self._stop_jobs()

    def _report_problem(self, info: SubmittedJobInfo, said: str, **shown: Any) -> None:
        said = self._hidden.masked(said)
        if info.job.is_group():
            # Of a group Snakemake shows its rules, and no message.
            self._logger.error(said)
        self.report_job_error(info, msg=said, **shown)

    def cancel_jobs(self, active_jobs: list[SubmittedJobInfo]) -> None:
        """Stop what is being rented, and end all nodes."""
        if self._run is None:
            return
        self._is_cancelled = True
        self._heed_no_signal()
        self._stop_jobs()
        deadline = time.monotonic() + PATIENCE_S
        for job in self._jobs:
            # One that an interrupt came before has not started.
            if job.ident is not None:
                job.join(timeout=max(0.0, deadline - time.monotonic()))
        # A node that a job's thread asked for in the last moment.
        self._run.pool.close()

    def _stop_jobs(self) -> None:
        """Make all jobs give up, and end all nodes."""
        assert self._run is not None
        for job in self._jobs:
            job.cancel()
        try:
            self._cloud.cancel()
        except Exception as error:  # SkyPilot's server may be gone; the nodes are ended in any case.
            self._logger.error(self._hidden.masked(f"What is being rented could not be stopped: {error}"))
        self._run.pool.close()

    def shutdown(self) -> None:
        """End all nodes, and say what they cost."""
        super().shutdown()
        self._end()

    def _end(self) -> None:
        if self._run is None or self._is_over:
            return
        self._is_over = True
        if not self._is_cancelled and any(job.is_alive() for job in self._jobs):
            # Snakemake came to its end by an error of its own.
            self.cancel_jobs([])
        self._run.pool.close()
        if self._settings.keep_running:
            self._logger.warning("Nodes are kept running, and cost money: end them with sky down NAME.")
        else:
            self._end_strays(self._run.name)
            self._lock.release()
        if summary := self._run.ledger.summary():
            self._logger.info(summary)

    def _end_strays(self, run: str) -> None:
        """End what the cloud made of a request that nobody waited for any more."""
        if not self._cloud.may_have_strays:
            return
        project = project_name(self._root, self._settings.project)
        try:
            for pod, node in self._cloud.strays(project).items():
                if run_of(node, project) == run:
                    self._cloud.end_stray(pod)
                    self._logger.info(f"Ended {node}, which was rented after it had been given up.")
        except Exception as error:
            said = f"Whether the cloud has rented what was given up could not be seen: {first_line(error)}"
            self._logger.error(self._hidden.masked(f"{said}\nThe next run looks again."))

    def _prepare(self, jobs: Sequence[Job]) -> None:
        """Check what the jobs need, say what they are going to cost, and open the run."""
        # Before any contact: what can be told from the workflow alone.
        planning.check_files(self.workflow, jobs, self._kept_back)
        sky, settings = import_sky(), self._settings
        # SkyPilot gives the root logger handlers, with which every message of Snakemake's would appear twice.
        self._logger.propagate = False
        planned, told_later = planning.planned_jobs(jobs, self._wanted)
        self._prices = Prices(settings.infra, sky.catalog)
        lines = preflight.expected_cost(planned, self._prices, max_price_total=settings.max_price_total)
        preflight.check_access(sky, settings.infra)
        self._logger.info("\n".join([*lines, *told_later]))
        self._cloud = Cloud(
            settings.infra,
            image=settings.image,
            keep_running=settings.keep_running,
            launch_minutes=settings.launch_minutes,
        )
        self._sources = self._sources_of_workflow()
        state, hidden = self._state, self._hidden
        self._run, self._lock = open_run(settings, self._cloud, hidden, self._logger, root=self._root, state=state)
        atexit.register(self._end)

    def _end_on_signals(self) -> None:
        """Have SIGTERM and SIGHUP end the run as Ctrl-C does: Snakemake itself would wait for hours of rented jobs."""
        if threading.current_thread() is threading.main_thread() and not self._is_cancelled:
            for number in ENDED_BY:
                # Whoever started it with nohup wants it to go on.
                if signal.getsignal(number) is not signal.SIG_IGN:
                    signal.signal(number, _interrupt)

    def _heed_no_signal(self) -> None:
        """Have nothing but a third Ctrl-C break off the ending of nodes."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in ENDED_BY:
            signal.signal(number, signal.SIG_IGN)
        warnings = iter(["Nodes are being ended, which takes a minute; once more leaves them to their idle limit."])

        def interrupt(_: int, __: FrameType | None) -> None:
            if (warning := next(warnings, None)) is None:
                raise KeyboardInterrupt
            self._logger.warning(warning)

        signal.signal(signal.SIGINT, interrupt)

    def _wanted(self, job: Job) -> WantedNode:
        members = jobs_of(job)
        for each in members:
            refuse_undecided(each.resources, job=name_of(each))
        # Snakemake adds up what jobs of a group want; a limit is not added up.
        return wanted_node(
            {**dict(job.resources.items()), **strictest(each.resources for each in members)},
            job.threads,
            self._settings,
            job=name_of(job),
        )

    def _fill(self, folder: Path, inputs: list[str], resume: list[str]) -> None:
        remove(folder)
        # What an earlier try left to go on from.
        left = [path for path in resume if (self._root / path).exists()]
        fill(folder, self._sources, [*inputs, *left], self._kept_back)

    def _sources_of_workflow(self) -> set[str]:
        """The files that go with every job; found once, by the thread that the DAG belongs to."""
        requirements = self._requirements
        return set(self._dag.get_sources()) | ({inside(requirements, self._root)} if requirements else set())

    @cached_property
    def _secrets(self) -> dict[str, str]:
        return preflight.secret_values(self._settings.secrets) | dict(self.envvars())

    @cached_property
    def _hidden(self) -> Secrets:
        return Secrets(self._hidden_values)

    @cached_property
    def _hidden_values(self) -> list[str]:
        return [*self._secrets.values(), *preflight.secret_values(preflight.RUNPOD_KEY).values()]

    @cached_property
    def _python(self) -> str:
        return self._settings.python or ".".join(platform.python_version_tuple()[:2])

    @cached_property
    def _environment(self) -> str | None:
        requirements = self._requirements
        return None if requirements is None else scripts.environment_path(Path(requirements), self._python)

    @cached_property
    def _setup_script(self) -> str:
        return scripts.setup_script(self._requirements, self._environment, self._python, self._settings.setup)


def _interrupt(number: int, _: FrameType | None) -> None:
    # Once: a second signal must not break off the ending of nodes.
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt
