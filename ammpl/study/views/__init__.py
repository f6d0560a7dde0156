"""Where people look: the terminal, MLflow, Optuna's tools. The study needs none of them."""
