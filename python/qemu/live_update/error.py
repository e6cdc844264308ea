# SPDX-License-Identifier: GPL-2.0-or-later
"""
How an update may end other than well

The exit status says what a script has to know: where the VM runs.
"""


class UpdateError(Exception):
    """An update ended early; the text is a sentence for the user."""
    status = ''
    exit = 0


class Refused(UpdateError):
    """Nothing was changed: the old QEMU runs the VM."""
    status = 'refused'
    exit = 1


class Failed(UpdateError):
    """It was tried in vain: the old QEMU runs the VM on."""
    status = 'failed'
    exit = 2


class NeedsPerson(UpdateError):
    """What to do next is not for a program to decide."""
    status = 'attention'
    exit = 3
