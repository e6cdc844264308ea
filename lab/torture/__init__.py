# SPDX-License-Identifier: GPL-2.0-or-later
"""
Random faults while VMs migrate from QEMU to QEMU; ./run torture runs it

A round is one VM and some transfers.  Its random choices are made before it
begins, from the seed and the number of the round: see choices.py.
"""
