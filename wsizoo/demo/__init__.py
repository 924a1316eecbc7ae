"""Procedural slides and the guided tour that `wsizoo demo` runs."""
