# What a run prints: the nearest target for a misspelt one, and at the end where the results are.
#
# INPUTS   none
# OUTPUTS  none

from outlier_moe.planning.targets import rule_of_many, unknown_target
from snakemake_logger_plugin_study import HOOKS

RESULTS = {
    "report": "results/report/index.html",
    "models side by side": "results/comparison/models.parquet",
    "upcycling": "results/upcycle/summary.parquet",
    "scale sweep": "results/scale_sweep/summary.parquet",
    "language models": "results/lm_scale_sweep/summary.parquet",
}


def outputs_by_rule():
    """What each rule makes, with the constraints of its wildcards."""
    return {
        each.name: [str(output) for output in each.output] for each in workflow.rules
    }


def unknown_target_message(target):
    """What to say of a target that no rule makes."""
    return str(unknown_target(target, outputs_by_rule(), REGISTRY.models))


def rule_of_many_message():
    """What to say of a rule that makes a file for each of many models, if one is a target."""
    outputs = outputs_by_rule()
    many = [
        each.name
        for each in workflow.rules
        if each.has_wildcards() and each.name in workflow.dag_settings.targets
    ]
    return "\n".join(str(rule_of_many(name, outputs[name])) for name in many)


def results_message():
    """The results that are there, and what was asked for, a line each."""
    outputs = outputs_by_rule()
    asked = {
        path
        for target in workflow.dag_settings.targets
        for path in outputs.get(target, [target])
    }
    there = {name: path for name, path in RESULTS.items() if Path(path).exists()}
    there |= {
        path: path for path in sorted(asked - {*there.values()}) if Path(path).exists()
    }
    if not there:
        return ""
    width = max(len(name) for name in there)
    lines = [
        f"  {path}" if name == path else f"  {name:{width}}  {path}"
        for name, path in there.items()
    ]
    return "\n".join(["Results (outlier-moe --help says how to look at them):", *lines])


HOOKS.unknown_target = unknown_target_message
HOOKS.rule_of_many = rule_of_many_message
HOOKS.results = results_message
