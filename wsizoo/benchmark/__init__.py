"""Models compared on one table of slides."""
