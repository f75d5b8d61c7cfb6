"""What does classifier.onnx beside this file say about X-rays? It needs onnxruntime, pillow and numpy alone.

    python predict_onnx.py FILE ...

prints one line of JSON for each PNG, JPEG or TIFF: the probability of each class or finding. Save DICOM as PNG first.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(Path(__file__).with_name("classifier.onnx"))
facts = session.get_modelmeta().custom_metadata_map
names, size = json.loads(facts["classes"]), 2 * int(facts["decoded_to"])
for file in sys.argv[1:]:
    opened = Image.open(file)
    opened.draft("L", (size, size))  # of a large JPEG, decode no more than is needed
    image = ImageOps.exif_transpose(opened)
    if image.mode.startswith(("I", "F")):  # more than 8 bits: from these percentiles to 0..255
        white_is_zero = getattr(opened, "tag_v2", {}).get(262) == 0  # of a TIFF
        values = np.asarray(image, np.float32) * (-1 if white_is_zero else 1)
        low, high = np.percentile(values, (0.5, 99.5))
        image = Image.fromarray(np.rint((values - low) * 255 / (high - low)).clip(0, 255).astype(np.uint8))
    image = image.convert("RGBA")
    gray = np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L"))  # [H, W]
    [[probabilities]] = map(np.asarray, session.run(None, {"pixels": gray[None, None]}))
    print(json.dumps({"file": file, **dict(zip(names, probabilities.round(4).tolist(), strict=True))}))
