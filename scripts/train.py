"""Train one classifier: python scripts/train.py --config configs/cifar10_small.yaml [--model.norm gn] [--name a]"""

from bnood.errors import run_door


def main() -> None:
    """Import inside, so that Ctrl-C during the imports is one line too."""
    from bnood.training.train import train

    train()


if __name__ == "__main__":
    run_door(main)
