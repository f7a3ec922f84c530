"""Train, evaluate and judge networks: python scripts/study.py --config configs/studies/demo.yaml"""

from bnood.errors import run_door


def main() -> None:
    """Import inside, so that Ctrl-C during the imports is one line too."""
    from bnood.study.cli import main as study

    study()


if __name__ == "__main__":
    run_door(main)
