"""How good a judge is: figures with intervals, what to beat, biases, rankings, and the report that holds them."""
