# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests of what ./run calls, and of the repository as a whole."""
