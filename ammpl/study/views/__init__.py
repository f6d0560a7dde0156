"""Where people look: the terminal, MLflow, Optuna's tools, a copy of the folder. The study needs none of them."""
