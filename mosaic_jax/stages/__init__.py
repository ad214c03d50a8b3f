"""The stages of a run: each reads what earlier stages put out and can stop and resume between any two segments."""
