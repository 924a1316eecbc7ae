"""Training and its measures: a short plain loop, ROC, splits."""
