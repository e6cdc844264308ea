# SPDX-License-Identifier: GPL-2.0-or-later
"""
The library of the lab: QEMU processes, their guests, back-ends and migrations

It imports nothing from the leaves tests, demo, bench, torture and fuzz.
"""
