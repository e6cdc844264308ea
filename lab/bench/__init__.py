# SPDX-License-Identifier: GPL-2.0-or-later
"""
Measurements, side by side with QEMU without the series; ./run bench runs them
"""
