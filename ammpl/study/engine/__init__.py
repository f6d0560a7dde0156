"""Where trials run: Ray's cluster and workers, and what travels to them."""
