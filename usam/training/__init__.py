"""Run files, transformers' Trainer, and what is logged while it trains."""
