"""Starts the command `prefdag`. Its imports take a second, in which Ctrl-C is one line too."""

from prefdag.lifecycle.exits import quiet_interrupts


def main() -> None:
    """Run the command in the arguments of the process."""
    quiet_interrupts()
    from prefdag.cli import app

    app(prog_name="prefdag")


if __name__ == "__main__":
    main()
