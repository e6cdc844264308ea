# SPDX-License-Identifier: GPL-2.0-or-later
"""
The ways in which an update ends without success

The exit status tells a script which QEMU runs the VM.
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
    """The update was begun and undone: the old QEMU runs the VM."""
    status = 'failed'
    exit = 2


class NeedsPerson(UpdateError):
    """The user has to decide what to do next; the text says what about."""
    status = 'attention'
    exit = 3
