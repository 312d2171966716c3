"""A page of YAML, read, merged and checked, that says which components make a model."""
