"""Choosing among heads: splits that do not leak, and scores measured on them."""
