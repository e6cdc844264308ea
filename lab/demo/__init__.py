# SPDX-License-Identifier: GPL-2.0-or-later
"""
Demonstrations for people; ./run demo runs them
"""
