"""Feature files of other tools: recognised by content, read into bags, written, inspected."""
