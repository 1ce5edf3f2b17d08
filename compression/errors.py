"""The one exception whose text is written for the person at the keyboard."""


class UserError(Exception):
    """What is wrong and what would be right, in one sentence.

    The command line prints it without a traceback and exits with 1; the run's note in MLflow shows the same
    sentence. Raise it for anything the user can mend; let programming errors raise what they raise.
    """


def first_line(error: BaseException) -> str:
    """An exception's first line, short enough to stand in a sentence."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def quoted(value: object) -> str:
    """A value as Python writes it, short enough to stand in a sentence."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:120]} … {text[-40:]}"


def root_cause(error: BaseException) -> BaseException:
    """The exception that `error` was raised from in the end, or `error` itself."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
