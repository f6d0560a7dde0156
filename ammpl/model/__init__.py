"""The model: prompts around a frozen CLIP. Imports no Ray, Optuna, MLflow or Arrow."""
