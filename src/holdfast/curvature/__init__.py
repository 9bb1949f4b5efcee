"""What a move costs: one file per structure of the Fisher information of one layer."""
