"""The normalisation lab: python scripts/lab.py --config configs/lab/demo.yaml"""

from bnood.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        from bnood.lab.cli import main

        main()
