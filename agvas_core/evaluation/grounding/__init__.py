"""Whether words matter: what a model makes of instructions, on generated images whose truth is known (paper 3.1, 4.3)."""
