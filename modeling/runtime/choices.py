"""The values that settings can take, by name. Imports nothing, so that a command line is checked in a moment."""

ORIENTATIONS = ("ab", "ba")
TRAINED_ORIENTATIONS = (*ORIENTATIONS, "both")  # what a member can have learned to read
READINGS = ("own", "both")

TIE_POLICIES = ("keep", "drop")
BLANK_POLICIES = ("error", "drop", "keep")
BAD_ROW_POLICIES = ("error", "drop")
LEAK_POLICIES = ("drop", "keep", "error")
DUPLICATE_POLICIES = ("keep", "drop")
FOLD_METHODS = ("prompt", "modulo")

TRUNCATIONS = ("balanced", "left")
QUANTIZATIONS = ("none", "8bit", "4bit")
QUANT_TYPES = ("nf4", "fp4")
PRECISIONS = ("auto", "bfloat16", "float16", "float32")  # of --dtype
MERGES = ("auto", "always", "never")
CALIBRATIONS = ("temperature", "isotonic")
