"""Synthetic X-rays in the layouts of both data sets."""
