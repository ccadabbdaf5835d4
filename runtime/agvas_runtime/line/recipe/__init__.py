"""The recipe of a product: thresholds, regions, rules, image limits, and its versions."""
