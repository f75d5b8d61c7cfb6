"""The operators that make views, and the recipes that name them."""
