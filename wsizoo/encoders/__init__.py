"""Encoders: patches to feature vectors, and the facts that make two of them comparable."""
