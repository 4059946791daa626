"""The tables of the experiment dense -> MoE: `upcycle/*.parquet`.

Steps count both phases, so that the boundary is where phase 1 ends. Losses are in nats, over the same held-out windows
at every checkpoint, and not finite where a run has diverged; `pair`, `seed` and `arm` say which run a row belongs to.
"""

from __future__ import annotations

import dataframely as dy

from outlier_moe.tables.schemas import tap_enum


class UpcyclingRun(dy.Schema):
    """`summary.parquet`: one row per (pair, seed, arm).

    Outlier figures are given three times: at the end of phase 1, for the mixture before its training (`transition`),
    and at the end. Peak and kurtosis are those of the residual stream, the count is by the study's default preset.
    Columns about experts are null for the control, which has none.
    """

    pair = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    arm = dy.String(primary_key=True)
    loss_before_nats = dy.Float64(min=0)
    loss_after_nats = dy.Float64(min=0, allow_nan=True, allow_inf=True)
    boundary_jump_nats = dy.Float64(allow_nan=True, allow_inf=True)
    """`loss_after_nats` minus `loss_before_nats`."""
    final_loss_nats = dy.Float64(min=0, allow_nan=True, allow_inf=True)
    drop_nats = dy.Float64(allow_nan=True, allow_inf=True)
    """`loss_before_nats` minus `final_loss_nats`."""
    largest_logit_difference = dy.Float64(nullable=True, min=0, allow_nan=True, allow_inf=True)
    """Largest difference of a logit between the mixture before its training and the dense model, on the same probe."""
    is_equivalent = dy.Bool(nullable=True)
    load_entropy = dy.Float64(nullable=True, min=0, max=1)
    """Entropy of the experts' shares of the held-out tokens at the end: 1 if all are alike; the mean over the
    layers."""
    n_dead = dy.Float64(nullable=True, min=0)
    """Experts without a token: the mean over the layers."""
    expert_distance = dy.Float64(nullable=True, min=0, allow_nan=True)
    """Distance between the weights of two experts over their mean length: the mean over pairs and layers."""
    least_expert_distance = dy.Float64(nullable=True, min=0, allow_nan=True)
    n_twins = dy.Int64(nullable=True, min=0)
    """Pairs of experts of one layer whose weights are equal."""
    n_systematic_phase1 = dy.Int64(nullable=True, min=0)
    peak_phase1 = dy.Float64(nullable=True, min=0)
    kurtosis_phase1 = dy.Float64(nullable=True)
    excess_kurtosis_phase1 = dy.Float64(nullable=True)
    n_systematic_transition = dy.Int64(nullable=True, min=0)
    peak_transition = dy.Float64(nullable=True, min=0)
    kurtosis_transition = dy.Float64(nullable=True)
    excess_kurtosis_transition = dy.Float64(nullable=True)
    n_systematic_final = dy.Int64(nullable=True, min=0)
    peak_final = dy.Float64(nullable=True, min=0)
    kurtosis_final = dy.Float64(nullable=True)
    excess_kurtosis_final = dy.Float64(nullable=True)
    n_steps = dy.Int64(min=0)
    """Steps of phase 2."""
    time_s = dy.Float64(min=0)
    """Time of the steps of phase 2, in seconds."""


class UpcyclingCheckpoint(dy.Schema):
    """`checkpoints.parquet`: one row per (pair, seed, arm, phase, step). Phase 1 stands once for each arm."""

    pair = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    arm = dy.String(primary_key=True)
    phase = dy.Int64(primary_key=True, min=1, max=2)
    step = dy.Int64(primary_key=True, min=0)
    held_out_loss_nats = dy.Float64(min=0, allow_nan=True, allow_inf=True)
    load_entropy = dy.Float64(nullable=True, min=0, max=1)
    n_dead = dy.Float64(nullable=True, min=0)
    expert_distance = dy.Float64(nullable=True, min=0, allow_nan=True)
    least_expert_distance = dy.Float64(nullable=True, min=0, allow_nan=True)
    n_twins = dy.Int64(nullable=True, min=0)


class UpcyclingOutlier(dy.Schema):
    """`outliers.parquet`: rows per (checkpoint, tap), and others per (checkpoint, preset, first_token).

    The first have `peak`, the largest |x|, and the mean over the layers of each layer's median over the sequences of
    the two kurtoses; the second the number of systematic features.
    """

    pair = dy.String()
    seed = dy.Int64()
    arm = dy.String()
    phase = dy.Int64(min=1, max=2)
    step = dy.Int64(min=0)
    tap = dy.Enum(tap_enum.categories, nullable=True)
    peak = dy.Float64(nullable=True, min=0)
    kurtosis_of_feature_rms = dy.Float64(nullable=True)
    excess_kurtosis = dy.Float64(nullable=True)
    preset = dy.String(nullable=True)
    first_token = dy.String(nullable=True)
    n_systematic = dy.Int64(nullable=True, min=0)


class UpcyclingStep(dy.Schema):
    """`history.parquet`: one row per (pair, seed, arm, step) of phase 2, and of phase 1 with the arm `phase 1`.

    `loss` is what is minimised; mixtures have its parts too.
    """

    pair = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    arm = dy.String(primary_key=True)
    phase = dy.Int64(min=1, max=2)
    step = dy.Int64(primary_key=True, min=0)
    loss = dy.Float64(nullable=True)
    """Null in the step in which a run diverged."""
    loss_nats = dy.Float64(nullable=True)
    load_balancing = dy.Float64(nullable=True)
    learning_rate = dy.Float64(min=0)
    gradient_norm = dy.Float64(nullable=True)
    n_units = dy.Int64(min=1)
    """Tokens in the step."""
    units_per_s = dy.Float64(min=0)
    time_s = dy.Float64(min=0)
    n_accumulate = dy.Int64(min=1)


class UpcyclingSample(dy.Schema):
    """`samples.parquet`: what each trained model goes on with after a prompt, always the likeliest token.

    A row per (pair, seed, arm, phase, prompt); phase 1, which all arms share, has the arm `phase 1`.
    """

    pair = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    arm = dy.String(primary_key=True)
    phase = dy.Int64(primary_key=True, min=1, max=2)
    prompt = dy.String(primary_key=True)
    continuation = dy.String()
    """What the model adds to the prompt."""


class ExpertLoad(dy.Schema):
    """`experts.parquet`: one row per (pair, seed, arm, checkpoint of phase 2, layer, expert)."""

    pair = dy.String(primary_key=True)
    seed = dy.Int64(primary_key=True)
    arm = dy.String(primary_key=True)
    step = dy.Int64(primary_key=True, min=0)
    layer = dy.Int64(primary_key=True, min=0)
    expert = dy.Int64(primary_key=True, min=0)
    n_tokens = dy.Int64(min=0)
    """Held-out tokens that the expert works on."""
    load_share = dy.Float64(min=0, max=1)
