"""Anomaly-Instruct20K (paper 3.3, A.2): what a vision-language model says about each anomalous sample, checked, reviewed, written as lines.

samples -> pictures, prior sentence -> endpoint -> answer checked -> JSON lines -> a person's review -> ``reading.read_instruct``
"""
