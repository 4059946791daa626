"""A Snakemake executor that runs each job on a node that SkyPilot rents, brings its files back and ends the node.

Snakemake imports every executor plugin there is, at each start: SkyPilot itself is imported only when this one is used.
"""

from snakemake_interface_executor_plugins.settings import CommonSettings

from snakemake_executor_plugin_skypilot.executor import Executor
from snakemake_executor_plugin_skypilot.settings import ExecutorSettings

__all__ = ["Executor", "ExecutorSettings", "common_settings"]

common_settings = CommonSettings(
    non_local_exec=True,
    implies_no_shared_fs=True,
    # The sources go with a job's inputs, not through a storage provider.
    job_deploy_sources=False,
    can_transfer_local_files=True,
    pass_default_storage_provider_args=True,
    pass_default_resources_args=True,
    # Their values would be in the command line; they go as SkyPilot's secrets.
    pass_envvar_declarations_to_cmd=False,
    auto_deploy_default_storage_provider=False,
    init_seconds_before_status_checks=1,
)
