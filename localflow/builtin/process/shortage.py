"""What the system is short of when no worker can be started, and what to do about it."""

from __future__ import annotations

import errno

#: Ends of its three pipes, and four memory files.
_FILES_OF_A_WORKER = 10


def in_words(error: OSError) -> str:
    """Word an error of the system, with the limit that has been reached if it is one."""
    import resource  # only now: most programs never need it

    text = f"{type(error).__name__}: {error}"
    if error.errno == errno.EMFILE:
        have = _limit(resource.RLIMIT_NOFILE)
        return f"{text}; raise ulimit -n (have {have}, need {_FILES_OF_A_WORKER} for each worker)"
    if error.errno == errno.EAGAIN:
        have = _limit(resource.RLIMIT_NPROC)
        return f"{text}; raise ulimit -u (have {have}, for all processes and threads of this user)"
    return text


def _limit(kind: int) -> str:
    import resource

    soft = resource.getrlimit(kind)[0]
    return "no limit" if soft == resource.RLIM_INFINITY else str(soft)
