"""How good a tuned model is on data that nobody saw, with a guarantee: PAC-Bayes bounds around different priors."""
