"""What lasts: a study's folder, its event log, its Parquet files, what it ran on."""
