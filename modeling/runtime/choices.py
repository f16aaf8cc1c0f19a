"""The values that each setting may have. Imports nothing, so that a command line is checked at once."""

ORIENTATIONS = ("ab", "ba")
TRAINED_ORIENTATIONS = (*ORIENTATIONS, "both")  # a member can also be trained on both orders
# The passes of each member: in both orders, the default, or in the one that it was trained in.
READINGS = ("both", "own")
DEFAULT_READINGS = READINGS[0]

TIE_POLICIES = ("keep", "drop")
BLANK_POLICIES = ("error", "drop", "keep")
BAD_ROW_POLICIES = ("error", "drop")
CONTAMINATION_POLICIES = ("drop", "keep", "error")
DUPLICATE_POLICIES = ("keep", "drop")
FOLD_METHODS = ("prompt", "modulo")

TRUNCATIONS = ("balanced", "left")
POOLINGS = ("last", "mean")
NUM_LABELS = (2, 3)
QUANTIZATIONS = ("none", "8bit", "4bit")
QUANT_TYPES = ("nf4", "fp4")
PRECISIONS = ("auto", "bfloat16", "float16", "float32")
MERGES = ("auto", "always", "never")
STOCK_FORMS = ("merged", "adapter")
SUBMISSIONS = ("wsdm", "lmsys")  # the columns of submission.csv, as the two contests ask for them
SELECTIONS = ("uncertainty", "disagreement", "product")  # what select.py ranks battles by
ANNOTATION_FORMATS = ("csv", "argilla", "labelstudio")
CALIBRATIONS = ("temperature", "isotonic")
METRICS = ("accuracy", "log_loss", "brier", "ece", "auc")
HIGHER_IS_BETTER = ("accuracy", "auc")  # of the others, less is better
RANK_METHODS = ("all", "active", "swiss", "knockout")
DEFAULT_RANK_METHOD = "all"
BUDGETED = ("active", "swiss")  # those that choose pairs within a fraction of all pairs
DEFAULT_BUDGET = 0.5
# Public benchmarks that evaluate.py knows, each with its data set on the Hub.
BENCHMARKS = {
    "rewardbench": "allenai/reward-bench",
    "rewardbench2": "allenai/reward-bench-2",
    "rm-bench": "THU-KEG/RM-Bench",
    "judgebench": "ScalerLab/JudgeBench",
    "llmbar": "princeton-nlp/LLMBar",
    "ppe": "lmarena-ai/PPE-Human-Preference-V1",
    "m-rewardbench": "CohereLabsCommunity/multilingual-reward-bench",
    "mt-bench": "lmsys/mt_bench_human_judgments",
    "helpsteer3": "nvidia/HelpSteer3",
}
