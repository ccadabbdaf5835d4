"""What training, export and runtime must agree on. Never imports torch.

``errors`` (the exception tree), ``anchors`` (their order), ``preprocess`` (frame to view), ``prompts`` (what is said),
``manifest`` (the bundle).
"""
