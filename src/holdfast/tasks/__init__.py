"""On what: one file per benchmark task."""
