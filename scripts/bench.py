"""The same as `cortex bench`, from a checkout: `.venv/bin/python scripts/bench.py --demo --quick`."""

from gateway.cli.commands.bench import bench

if __name__ == "__main__":
    bench(prog_name="bench.py")
