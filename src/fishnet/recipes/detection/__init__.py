"""Recipes of detection."""
