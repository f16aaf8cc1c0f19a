"""Settings of a run: argument dataclasses, flags, recipes, help and parsing. It must not load torch."""
