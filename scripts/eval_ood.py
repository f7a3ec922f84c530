"""Score OOD sets under several BatchNorm statistics: python scripts/eval_ood.py [--run runs/my-run] [--ood svhn,dtd]"""

from bnood.errors import run_door


def main() -> None:
    """Import inside, so that Ctrl-C during the imports is one line too."""
    from bnood.evaluation.cli import main as evaluate

    evaluate()


if __name__ == "__main__":
    run_door(main)
