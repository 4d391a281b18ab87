"""Recipes of classification."""
