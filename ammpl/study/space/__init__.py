"""What a study asks: space files of either kind, with their parameters, samplers, pruners and budgets, checked."""
