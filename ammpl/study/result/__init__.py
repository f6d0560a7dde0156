"""What came out: the summary of a study, and the words and statistics in which it is told."""
