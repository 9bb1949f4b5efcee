"""Which parameters are trained: one file per method, PEFT's own first."""
