"""Recipes of multitask networks."""
