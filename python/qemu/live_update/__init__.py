# SPDX-License-Identifier: GPL-2.0-or-later
"""
Update the QEMU under a running VM

See docs/system/live-update.rst for what it does, and cli.py for where it
begins.
"""
