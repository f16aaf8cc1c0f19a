"""Models that read every battle both ways. Read the modules in the order of a battle's path:

files (tables, folders) -> hub (folders from and to the Hub) -> cleaning (Unicode) -> conversations (turns into one
text) -> schemas (a row in, texts and label out) -> checks (a source, chunk by chunk) -> battles (rows) ->
duplicates (near-equal texts) -> folds (held out together) -> mixing (sources) -> boundaries (where text may be cut)
-> tokenizing (templates) -> encoding (ids) -> packing (readings without padding) -> collation (batches) ->
audit (cuts and repairs) -> options (what scripts share) -> arguments (a run's settings) -> prediction_arguments (of a
reading judge) -> parsing (YAML and flags) -> launch (processes) -> losses (cross-entropy, distillation) ->
devices (what they can do) -> attention (inside a pack) -> classifier (network and head) -> bases (backbones) ->
probes (battles that show a change) -> adapters (LoRA) -> members (their folders) -> loading (members that read) ->
merging (adapters into weights) -> memory (bytes) -> checkpoints (restarts) -> training (the Trainer) ->
inference (packs, shards) -> resampling (intervals) -> metrics (figures of predictions) -> calibration (honest
probabilities) -> verdicts (a row per battle) -> readings (which are made, and when) -> judge (members averaged) ->
cascade (judges of growing cost) -> pseudolabels (verdicts as labels) -> baselines (what to beat) -> biases (order,
length) -> ratings (models ranked) -> sections (tables as text) -> reports (all that is known of predictions) ->
calibrating (on which battles) -> figures (pictures of it) -> pages (the same as HTML) -> provenance (what a member
says of its run) -> markdown (text that stays text) -> languages (their codes) -> licences (what names say of them) ->
limits (what figures do not show) -> cards (model cards) -> staging (a folder as it will stand on the Hub) ->
publishing (what goes there) -> serving (a judge for many) -> web (behind a page) ->
doctor (what works here) -> cli (the command `bothways`) -> turns (ways in turn) ->
notebook (the original's way) -> peers (other packages) -> speed (prediction, training) -> growth (cost against size)
-> second_readings (accuracy against seconds) -> encoding_speed (ids) -> streaming (a pool's memory) ->
tables (figures as text) -> plots (and as pictures). A module imports only from those before it.
"""
