# SPDX-License-Identifier: GPL-2.0-or-later
"""
Whether the user of a process may use files
"""
import os
from typing import Dict, List

from .process import Process


def denied(process: Process, wanted: Dict[str, int]) -> List[str]:
    """
    The files that the user and groups of a process may not use.

    @param wanted: how each file is to be used: R_OK, W_OK, X_OK of the module
                   "os", or several of them
    """
    paths = list(wanted)
    users = process.users
    if process.may_override_access or not paths:
        return []
    if os.geteuid() != 0:
        # Only root may look at processes of other users.
        return [path for path in paths if not os.access(path, wanted[path])]
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        # The kernel checks the access of the user that this child gets.
        try:
            os.setgroups(users['Groups'])
            os.setresgid(*[users['Gid'][1]] * 3)
            os.setresuid(*[users['Uid'][1]] * 3)
            os.write(writer, bytes(
                os.access(path, wanted[path]) for path in paths))
        finally:
            # Only the parent may run what follows.
            os._exit(0)  # pylint: disable=protected-access
    os.close(writer)
    with os.fdopen(reader, 'rb') as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return [path for path, is_allowed in zip(paths, answer) if not is_allowed]
