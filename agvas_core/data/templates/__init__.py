"""What is said about an image in training, as data: one TOML file for each task, and the words for what is looked for (paper A.2)."""
