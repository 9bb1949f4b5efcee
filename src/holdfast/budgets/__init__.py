"""How much forgetting is accepted, and what keeps a run within it."""
