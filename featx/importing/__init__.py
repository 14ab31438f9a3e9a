"""Features made elsewhere, of images or anything, become datasets of the cache."""
