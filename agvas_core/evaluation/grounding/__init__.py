"""Grounding: how much a model follows its instruction, on generated images whose truth is known (paper 3.1, 4.3)."""
