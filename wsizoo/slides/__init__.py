"""From a slide to features: read, find tissue, cut patches on one exact grid, encode, store."""
