"""Statistics and reports of predictions: no models, no judges."""
