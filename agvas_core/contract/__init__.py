"""The contract between training, export and runtime. Never imports torch.

``errors`` (the exception tree), ``anchors`` (their order), ``preprocess`` (frame to view), ``prompts`` (what is said),
``manifest`` (the bundle), ``tolerances`` (how far engines may be apart), ``certificate`` (how far they were found to be, and on what ``hardware``),
``backend`` (what an engine offers to be compared), ``command_line`` (how a command ends), ``durable``
(files that are whole or not there).
"""
