"""The composite of a spec's components as one model of transformers."""
