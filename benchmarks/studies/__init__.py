"""Studies: which parts of a judge help on real battles."""
