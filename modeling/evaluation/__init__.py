"""Statistics and reports of predictions: metrics, intervals, baselines, biases, leaderboards. No models, no judges."""
