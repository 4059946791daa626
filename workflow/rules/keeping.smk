# Keeps recordings, and lets a copied study rerun nothing. Before anything runs, each recording gets a name of its own.
# Files of a copy that have lost their times get them back.
#
# INPUTS   none
# OUTPUTS  results/{model}/recordings/, results/.times.json, results/.records/

from outlier_moe.recording.kept_times import (
    begin_changes,
    forget_known,
    keep_all_recordings,
    note_records,
    note_times,
    restore_records,
    restore_times,
)
from outlier_moe.machine.stages import killed_stages
from snakemake_logger_plugin_study import HOOKS

STUDY_FOLDERS = [Path("results"), Path("resources")]


def restore_copy():
    """Put back the times and records of a copied study, before Snakemake looks at them."""
    if not workflow.is_main_process:
        return
    if restore_records(STUDY_FOLDERS[0]):
        logger.info(
            "This copy has no records of Snakemake's: those beside its results are used"
        )
    if n_files := restore_times(STUDY_FOLDERS):
        logger.info(f"{n_files} files are as the last run left them: their times too")


def prepare_results():
    """What is done before the first job starts, and Snakemake removes what it makes."""
    keep_all_recordings(Path("results"), Path("resources/models"))
    begin_changes(STUDY_FOLDERS)


def note_results():
    """What is done when the last job has ended."""
    forget_known(STUDY_FOLDERS)
    note_records(STUDY_FOLDERS[0])
    note_times(STUDY_FOLDERS)


def killed_message():
    """What is said of jobs that were killed."""
    return "\n".join(killed_stages(Path("logs")))


restore_copy()


onstart:
    if workflow.is_main_process:
        prepare_results()


# A workflow has one of each: what is said at the end is here too.
onsuccess:
    if workflow.is_main_process:
        note_results()
        logger.info(HOOKS.results())


onerror:
    if workflow.is_main_process:
        note_results()
        if killed := killed_message():
            logger.error(killed)
        logger.error(
            "The run failed. What is done stays; the same command goes on."
        )
