# SPDX-License-Identifier: GPL-2.0-or-later
"""
Random faults while VMs move from QEMU to QEMU; ./run torture runs it

A round is one VM and some transfers.  All that is random in it is chosen
beforehand from the seed and the round's number: see choices.
"""
