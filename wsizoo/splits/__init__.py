"""Who trains, validates and tests: made, read, written, audited."""
