"""Extraction: images through frozen networks into the cache, each image once."""
