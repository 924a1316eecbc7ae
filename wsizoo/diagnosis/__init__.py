"""What a model does inside, as numbers: the rank of its attention, and how far it sees."""
