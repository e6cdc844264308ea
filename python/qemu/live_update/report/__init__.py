# SPDX-License-Identifier: GPL-2.0-or-later
"""
What the option --report writes: the guest's requests around an update

rings reads the requests of the guest's disks from the virtqueues in guest
memory, record does so during an update, picture draws their latency with
matplotlib, and html writes the file.
"""
