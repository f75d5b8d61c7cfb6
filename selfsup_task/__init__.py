"""Which recipe? Then the final pretraining."""
