"""What runs next: the plan of a search or an ablation; told again what the log has, it goes on."""
