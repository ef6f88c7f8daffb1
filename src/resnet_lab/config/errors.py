"""The one exception that means: the user can put this right."""


class UserError(ValueError):
    """A mistake of the user, said in one message that tells what to do instead.

    The command line prints its text after `error:` and ends with status 1. Any other exception
    is a fault of the program and keeps its traceback.
    """
