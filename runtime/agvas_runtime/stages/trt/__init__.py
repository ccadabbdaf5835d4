"""The stages on TensorRT: engines that ``agvas-export trt`` built on this GPU, run through cuda-bindings.

What one stage gives stays on the GPU (``DeviceArray``) until it is read. No engine of ours has been run on a GPU yet: the
tests have a CUDA and a TensorRT of their own underneath, which compute on the CPU.
"""
