"""The feature cache on disk: immutable HDF5 shards found by content, and manifests of datasets."""
