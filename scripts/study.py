"""Train, evaluate and judge a grid of norms and seeds: python scripts/study.py --config configs/studies/demo.yaml"""

from bnood.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        from bnood.study.cli import main

        main()
