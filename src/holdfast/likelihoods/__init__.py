"""What a head says of its labels: one file per likelihood, and the reader that finds it in a model's output."""
