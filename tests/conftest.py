"""What all tests share."""

import signal


def pytest_configure() -> None:
    """Let SIGINT interrupt the commands that tests start, whatever started pytest.

    A shell's background job ignores SIGINT, and every process it starts would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
