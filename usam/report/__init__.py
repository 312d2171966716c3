"""Pictures of runs: how they learned, what their parts do with a clip, how good they are, and what they learn from."""
