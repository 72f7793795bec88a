"""Rows of tables: files of text, Parquet, data set libraries and Python functions. Each row knows where it was read."""
