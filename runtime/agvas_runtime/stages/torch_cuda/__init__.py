"""The three stages by torch on an NVIDIA GPU: bfloat16, one CUDA graph from both views to the masks' logits in direct mode.

    device     which GPU, and the reasons to refuse
    sam        SAM without a bias of L x L
    seeing     stage 1 and 3 as they are computed here
    pieces     norms, rotations and products between the matrix products, which torch may compile
    reading    stage 2 in direct mode: the prompt's beginning known beforehand, four rows in the last layer
    linear     products in bfloat16 or float8
    direct     one frame, SAM on a stream of its own
    capture    CUDA graphs by shape
    engine     weights, streams and buffers of one bundle; stages: what the segmenter calls; probe: times by CUDA events

What each computes equals the model's own functions (``agvas_core.model``), which tests compare on a CPU in float32. Nothing imports it before
a backend ``torch-cuda`` is asked for; like ``reference`` it may reach into ``agvas_core.model``.
"""
