"""The normalisation lab: python scripts/lab.py --config configs/lab/demo.yaml"""

from bnood.errors import run_door


def main() -> None:
    """Import inside, so that Ctrl-C during the imports is one line too."""
    from bnood.lab.cli import main as lab

    lab()


if __name__ == "__main__":
    run_door(main)
