"""Data sets, their splits, and the few-shot tasks cut from them."""
