"""The main job on the embedded default: the paper's recipe on the miniature world, from nothing to a report."""
