"""Learning against forgetting: many runs as one study, and what can be said of them."""
