"""All commands: piggyback COMMAND, or python -m piggyback_tf COMMAND where nothing is installed."""

import sys

from piggyback_tf.commands.answers import answering_interrupts, program_name


def main(arguments: list[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: The command line without the program's name; that of the process if None.

    Returns:
        The exit status, by the rule in docs/commands.md.
    """

    def run() -> int:
        # Takes a good part of a second.
        from piggyback_tf.commands.all_commands import run_command

        return run_command(sys.argv[1:] if arguments is None else list(arguments))

    return answering_interrupts(run, program_name())


if __name__ == "__main__":
    sys.exit(main())
