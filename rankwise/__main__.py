"""``python -m rankwise`` is the ``rankwise`` command."""

from rankwise.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
