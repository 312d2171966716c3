"""Lhotse's cuts as rows of a manifest: in files, in Shar folders, and as CutSet objects."""
