"""Studies: what learns, and what does not, on real battles."""
