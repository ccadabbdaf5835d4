"""Pages that open from disk: one document, one style sheet and one chart module for run, eval, fit, profile and certificate."""
