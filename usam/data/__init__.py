"""Data: manifests, collation, and the embedded spoken corpus."""
