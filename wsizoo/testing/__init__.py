"""Tools for authors of plugins: conformance, parity, op equality, a Hub double."""
