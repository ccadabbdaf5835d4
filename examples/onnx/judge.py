"""One picture through a file of ``agvas export onnx``, with ONNX Runtime and Pillow alone; agvas is not needed.

agvas export onnx runs/lid -o lid.onnx
python examples/onnx/judge.py lid.onnx part.png
"""

import sys

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
height, width, _ = session.get_inputs()[0].shape
picture = Image.open(sys.argv[2]).convert("RGB")
if picture.size != (width, height):
    picture = picture.resize((width, height), Image.Resampling.BOX)
score_map, mask, score, verdict = session.run(["score_map", "mask", "score", "verdict"], {"image": np.asarray(picture)})
facts = session.get_modelmeta().custom_metadata_map
print(
    f"{['PASS', 'FAIL', 'NO_VERDICT'][verdict]} {score:.5f} {np.count_nonzero(mask)} px by {facts['model']}, {facts['operating_point']}"
)
