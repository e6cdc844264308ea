# SPDX-License-Identifier: GPL-2.0-or-later
"""
Functional tests: a real guest in a real QEMU with real back-ends

Run one with "python3 -m functional.test_NAME" from the top of the repository.
"""
