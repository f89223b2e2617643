"""
Use exported models with plain transformers, as somebody would who has never heard of this package.

```bash
python scripts/use_export.py lens-dino-vits8 lens-dino-vits8-classifier cutout.npy
```
"""

import sys

USAGE = "usage: use_export.py BACKBONE CLASSIFIER CUTOUT.npy"


def main() -> None:
    if {"-h", "--help"} & set(sys.argv):
        print(USAGE, __doc__, sep="\n")
        return
    if len(sys.argv) != 4:
        print(USAGE, file=sys.stderr)
        sys.exit(2)
    backbone, classifier, cutout = sys.argv[1:]
    import numpy as np
    import torch
    from transformers import AutoImageProcessor, AutoModel, pipeline

    pixels = np.load(cutout, allow_pickle=False)  # display units, (bands, height, width)

    model, loading = AutoModel.from_pretrained(backbone, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"], loading
    inputs = AutoImageProcessor.from_pretrained(backbone)(pixels, return_tensors="pt")
    with torch.no_grad():
        features = model(**inputs).pooler_output
    print(f"AutoModel: {features.shape[1]} features")

    scores = pipeline("image-classification", model=classifier)(pixels)
    print("pipeline: " + ", ".join(f"{score['label']} {score['score']:.3f}" for score in scores))
    assert "lens_ssl_hf" not in sys.modules


if __name__ == "__main__":
    main()
