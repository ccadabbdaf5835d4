"""Training on the mixture of data sets (paper 4.1, B.2): accelerate, DeepSpeed, and any of the models."""
