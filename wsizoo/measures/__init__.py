"""What predictions are worth: measures, their intervals, two models compared."""
