"""Wrong keys and values of config.yaml and models.yaml."""

from __future__ import annotations

from tests.faults.wrong_inputs import WrongInput, registered, studied

CASES = [
    WrongInput("config: a misspelt key", studied(magnitud=6.0), ("magnitud", "did you mean 'magnitude'")),
    WrongInput("config: a magnitude that is no edge", studied(magnitude=6.1), ("magnitude", "6", "6.5")),
    WrongInput("registry: a key twice", registered("models: {}\nmodels: {}\n"), ("models.yaml", "twice")),
]
