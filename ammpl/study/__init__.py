"""A study: many trials of one search space, scheduled by Ray Tune, sampled and pruned by Optuna."""
