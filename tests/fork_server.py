"""Runs command lines of `mlip` in processes forked from this one, which has imported it all.

Imports take seconds, and most commands in the tests end soon after. Reads jobs from its input, one
JSON a line: `words` of the command line, `folder` to run in, a file for the `output`, `seconds` of
wall time after which the process is ended, and the `limit` in bytes of the files it may write, or
null. Answers with what the process wrote as errors, its exit status, seconds of processor time and
largest memory in bytes.
"""

import json
import os
import resource
import signal
import sys

from mlip.cli import COMMANDS, build_parser, main

# vesin, which is imported when neighbours are looked for, imports torch where it is installed, and
# that takes longer than all else.
sys.modules["torch"] = None
build_parser(*COMMANDS)  # imports every command


def run(job, errors):
    """The command in this process, which ends with it."""
    signal.alarm(job["seconds"])
    os.chdir(job["folder"])
    output = os.open(job["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, output, errors)):
        os.dup2(file, number)
    if job["limit"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["limit"],) * 2)
    sys.argv = ["mlip", *job["words"]]
    sys.exit(main())


for line in sys.stdin:
    job = json.loads(line)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        run(job, write)
    os.close(write)
    with open(read) as errors:
        message = errors.read()
    _, status, usage = os.wait4(child, 0)
    answer = {
        "message": message,
        "status": os.waitstatus_to_exitcode(status),
        "seconds": usage.ru_utime + usage.ru_stime,
        "peak_bytes": 1024 * usage.ru_maxrss,
    }
    print(json.dumps(answer), flush=True)
