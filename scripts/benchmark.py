"""Measure speed and memory: python scripts/benchmark.py [--parts training,norms,evaluation,memory] [--output a.json]"""

from bnood.errors import one_line_errors

if __name__ == "__main__":
    with one_line_errors():
        from bnood.benchmark import main

        main()
