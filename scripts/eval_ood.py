"""Score OOD sets under several BatchNorm statistics: python scripts/eval_ood.py [--run runs/my-run] [--ood svhn,dtd]"""

from bnood.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        from bnood.evaluation.cli import main

        main()
