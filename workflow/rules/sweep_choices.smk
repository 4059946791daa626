# The sweeps over optimisers and scales: their runs, and which keys of a sweep's section decide which job.
#
# INPUTS   scale_sweep and lm_scale_sweep of the study
# OUTPUTS  none

from outlier_moe.scale_sweep.study import chosen_sweep, rates_of

# Each sweep with its preset filled in, and its runs.
SCALE_SWEEP = chosen_sweep(STUDY)
LM_SCALE_SWEEP = STUDY["lm_scale_sweep"]
SWEEP_RUNS = {
    "scale_sweep": [
        (scale, optimizer, seed)
        for scale in SCALE_SWEEP["scales"]
        for optimizer in SCALE_SWEEP["optimizers"]
        for seed in SCALE_SWEEP["seeds"]
    ],
    "lm_scale_sweep": [
        (f"d{d_model}", optimizer, seed)
        for d_model in LM_SCALE_SWEEP["d_models"]
        for optimizer in LM_SCALE_SWEEP["optimizers"]
        for seed in LM_SCALE_SWEEP["seeds"]
    ],
}
# Three kinds of keys in a sweep's section, so that a change makes only what depends on it: which runs there are (no run's
# figures depend on it; images are an input), how learning rates are chosen (a run depends on the chosen rate only), and
# what is measured (the choice of the rate does not depend on it).
OF_SWEEP = ["scales", "d_models", "optimizers", "seeds", "images"]
OF_GRID = ["multiples", "tuning_share", "tuning_seed"]
OF_MEASURES = ["n_checkpoints", "n_recorded"]


def without(section, keys):
    """A section without some of its keys."""
    return {key: section[key] for key in section if key not in keys}


def whole_batches(sweep):
    """How the runs of a sweep are trained, whatever the parts of their batches: scripts read those of the study."""
    return without(sweep["training"], ["n_accumulate"])


def rates_of_run(rates, wildcards):
    """Of the rates of all optimisers those that a run is trained at."""
    return {name: rates[name] for name in rates_of(wildcards.optimizer)}


def of_classifier(wildcards):
    """A classifier's section: of scales and rates its own alone."""
    scale, rates = wildcards.scale, SCALE_SWEEP["learning_rates"]
    return without(SCALE_SWEEP, OF_SWEEP) | {
        "training": whole_batches(SCALE_SWEEP),
        "sizes": {scale: SCALE_SWEEP["sizes"][scale]},
        "learning_rates": rates | {"base": rates_of_run(rates["base"], wildcards)},
    }


def classifier_grid(wildcards):
    """What decides which learning rate of a classifier is chosen."""
    return without(of_classifier(wildcards), OF_MEASURES)


def classifier_choices(wildcards):
    """What decides a classifier's figures, once its rate is chosen."""
    return without(of_classifier(wildcards), OF_GRID)


def of_language_model(wildcards):
    """A language model's section: of the rates its own alone."""
    rates = rates_of_run(LM_SCALE_SWEEP["learning_rates"], wildcards)
    return without(LM_SCALE_SWEEP, OF_SWEEP) | {
        "training": whole_batches(LM_SCALE_SWEEP),
        "learning_rates": rates,
    }


def language_model_grid(wildcards):
    """What decides which learning rate of a language model is chosen."""
    return without(of_language_model(wildcards), OF_MEASURES)


def language_model_choices(wildcards):
    """What decides a language model's figures, once its rate is chosen: there may be but one."""
    chosen = of_language_model(wildcards)
    return without(chosen, OF_GRID if has_grid() else OF_GRID[1:])


def has_grid():
    """Whether learning rates of language models are tried: one is taken as it is."""
    return len(LM_SCALE_SWEEP["multiples"]) > 1


def language_model_rates(wildcards):
    """The table of the learning rates that were tried, if any are."""
    folder = f"results/lm_scale_sweep/d{wildcards.d_model}/{wildcards.optimizer}"
    return f"{folder}/learning_rates.parquet" if has_grid() else []


def sweep_runs(wildcards):
    """The runs of a sweep."""
    return SWEEP_RUNS[wildcards.sweep]


def sweep_folders(wildcards):
    """The folders of a sweep's runs."""
    return [
        f"results/{wildcards.sweep}/{scale}/{optimizer}/seed{seed}/run"
        for scale, optimizer, seed in sweep_runs(wildcards)
    ]


def sweep_metrics(wildcards):
    """The measures of a sweep's runs."""
    return [
        f"results/{wildcards.sweep}/{scale}/{optimizer}/seed{seed}/metrics.parquet"
        for scale, optimizer, seed in sweep_runs(wildcards)
    ]
