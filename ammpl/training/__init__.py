"""Training, evaluation and testing of one trial: a pure function of its configuration."""
