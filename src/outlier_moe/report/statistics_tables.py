"""The report's tables of statistics on the models compared, and of where each MoE model's outlier tokens go."""

from __future__ import annotations

import polars as pl

from outlier_moe.report.inputs import ReportContents, ReportedModel, ReportInputs
from outlier_moe.report.tables import Table, plain_table
from outlier_moe.statistics.routing import most_striking
from outlier_moe.terminal.figures import plain

MOST_EXPERTS = 10

STATISTICS = {
    "dense_moe": ("Dense against MoE", "Rank tests and effect sizes at matched size or perplexity."),
    "pairs": ("Nearest pairs", "Each MoE model beside the dense models nearest to it."),
    "groups": ("By kind, routing and family", "The median, smallest and largest figure of the models of each group."),
    "differences": ("Differences of models", "With intervals from resampled sequences, paired on the same text."),
    "phase_transitions": ("Is there a jump?", "Permutation tests for a change point, and the jump that could be seen."),
    "trends": ("Four descriptions of each figure", "Compared by their AICc."),
    "stability": ("With fewer sequences", "How the figures move with the number of sequences."),
    "verification": ("Against what others published", "Reproduced, not reproduced, or not comparable, and why."),
    "super_experts": (
        "Super experts",
        "By the published rule: the experts whose largest output is above both of its thresholds; those in a layer that"
        " forms massive activations are super. The file has all experts.",
    ),
    "outlier_routing": (
        "Do outlier tokens go to other experts?",
        "Layer by layer, with the sequences as the units of the test.",
    ),
}
"""The tables of statistics that the page shows if they are there, by the names of their files."""
_NAMES_OF_MODELS = ("model", "other", "moe", "dense")


def statistics_tables(inputs: ReportInputs, contents: ReportContents) -> list[Table]:
    """The tables of statistics on the models compared, those of the default preset only where they have a preset."""
    compared = [model.name for model in contents.models]
    tables = []
    for name, (title, text) in STATISTICS.items():
        frame = inputs.statistics.get(name)
        if frame is None:
            continue
        # What is left out of the report has no figures in it either.
        for column in _NAMES_OF_MODELS:
            frame = frame.filter(pl.col(column).is_in(compared)) if column in frame.columns else frame
        if "preset" in frame.columns:
            frame = frame.filter(pl.col("preset") == inputs.default_preset.name)
            text = f"{text} Preset {inputs.default_preset.name}."
        if "first_token" in frame.columns:
            frame = frame.filter(pl.col("first_token").cast(pl.String) == "included")
        frame = _selected(name, frame)
        if not frame.is_empty():
            tables.append(plain_table(name, title, text, frame))
    return tables


def _selected(name: str, frame: pl.DataFrame) -> pl.DataFrame:
    """The rows to show; of a table in which nothing was tested none."""
    if "p_value" in frame.columns and "reason" in frame.columns and frame["p_value"].is_null().all():
        return frame.head(0)
    return frame.filter("is_above") if name == "super_experts" else frame


def routing_table(inputs: ReportInputs, model: ReportedModel) -> Table | None:
    """The experts of a model that its outlier tokens go to, or keep away from; None without recorded experts."""
    routing = inputs.statistics.get("expert_routing")
    of_model = None if routing is None else routing.filter(model=model.name)
    if of_model is None or of_model.is_empty():
        return None
    rows = most_striking(of_model)
    shown = rows.head(MOST_EXPERTS)
    what = f"outlier tokens (|x| ≥ {plain(of_model['magnitude'][0], 6)} at mlp_in)"
    text = (
        f"The {len(shown)} of {len(rows):,} experts whose shares of the layer's {what} and of its other tokens differ"
        " most for their numbers; lift is the one share over the other. The file has all experts."
        if len(rows)
        else f"In each layer all tokens or none are {what}, so that there is nothing to compare."
    )
    title = "Experts that outlier tokens go to, or keep away from"
    return plain_table(f"routing-{model.name}", title, text, shown.drop("model", "magnitude"))
