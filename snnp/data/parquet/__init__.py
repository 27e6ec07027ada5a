"""Datasets as parquet files: columns, limits, row groups."""
