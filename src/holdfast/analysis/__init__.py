"""What a user can see about a model before and after tuning: one file per analysis, and what they leave."""
