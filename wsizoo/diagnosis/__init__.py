"""What a model does inside, as numbers: of its attention, how much rank it has and how far it sees."""
