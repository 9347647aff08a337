"""From arguments to an exit status."""

from collections.abc import Sequence

from logitloss._command_line.interrupts import sigterm_as_interrupt
from logitloss._command_line.options import read_options
from logitloss._command_line.report import as_json, as_text, complain, print_out, reason
from logitloss._command_line.score import score


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    try:
        options = read_options(argv)
        with sigterm_as_interrupt():
            report, doubts = score(options)
        for doubt in doubts:
            complain(f"warning: {doubt}")
        print_out(as_json(report) if options.json else as_text(report))
    except (OSError, TypeError, ValueError) as error:
        complain(reason(error))
        return 2
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return 0
