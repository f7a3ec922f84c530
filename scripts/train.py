"""Train one classifier: python scripts/train.py --config configs/cifar10_small.yaml [--model.norm gn] [--name a]"""

from bnood.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        from bnood.training.train import train

        train()
