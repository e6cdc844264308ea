# SPDX-License-Identifier: GPL-2.0-or-later
"""
Functional tests: a real guest in a real QEMU with real back-ends

lab/README.md says how to run one.
"""
