"""Aggregators and heads small enough for the core."""
