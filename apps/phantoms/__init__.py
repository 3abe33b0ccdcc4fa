"""Artificial cases that show what a data set looks like: drawn organs, heads and beating hearts."""
