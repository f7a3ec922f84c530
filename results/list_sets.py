"""The photographs of configs/studies/imagenet.yaml, by origin, file, label and digest:

python results/list_sets.py data > results/imagenet/sets.csv
"""

import csv
import hashlib
import sys
from pathlib import Path

ORIGINS = {
    "imagenet-flickr": "https://github.com/ZhengyuZhao/Targeted-Transfer",
    "imagenet-sample": "https://github.com/EliSchwartz/imagenet-sample-images",
    "dtd-256": "https://github.com/pan8915/DeepTexture",
    "flowers-256": "https://github.com/JoelOscarsson/dl-assignment",
    "scenes15-256": "https://github.com/jaaumeadrover/Landscape-Image-Classification",
}


def main(root: Path) -> None:
    """Write one row per image; the label is the folder's name: an ImageNet class index in the first two sets."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["set", "origin", "file", "label", "sha256"])
    for name, origin in ORIGINS.items():
        for file in sorted((root / name).rglob("*.webp")):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            rows.writerow([name, origin, file.relative_to(root / name), file.parent.name, digest])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
