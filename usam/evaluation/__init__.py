"""How good a saved model is: its answers to whole files, what they score, and how sure that is."""
