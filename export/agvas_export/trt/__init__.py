"""ONNX graphs to TensorRT engines: ``agvas-export trt``. One code for TensorRT 10.3 to 11 and for TensorRT-RTX."""
